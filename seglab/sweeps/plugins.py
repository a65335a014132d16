"""Makes seglab's launchers and sweepers known to Hydra."""

import sys
from importlib import import_module
from types import ModuleType

from hydra.core.plugins import Plugins

from seglab.sweeps.grid import GridSweeper
from seglab.sweeps.local import LocalLauncher
from seglab.sweeps.submitit_launcher import SubmititLauncher
from seglab.sweeps.tpe import TPESweeper

# Hydra takes plugins from the package hydra_plugins alone, which seglab does not install.
MODULE = "hydra_plugins.seglab"


def register() -> None:
    """Put the plugins into `hydra_plugins.seglab`, where conf/hydra/ names them."""
    plugins = Plugins.instance()  # looks for installed plugins, before there is a module of ours
    try:
        package = import_module("hydra_plugins")
    except ModuleNotFoundError:  # no other plugin is installed
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
    module = sys.modules[MODULE] = ModuleType(MODULE)
    package.seglab = module  # type: ignore[attr-defined]
    for plugin in (LocalLauncher, SubmititLauncher, GridSweeper, TPESweeper):
        plugin.__module__ = MODULE  # Hydra's name of a plugin
        setattr(module, plugin.__name__, plugin)
        plugins.register(plugin)
