"""Base of the sweepers: reads what a sweep varies from its config and the command line."""

from __future__ import annotations

from collections.abc import Mapping

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from seglab.core.errors import InputError
from seglab.sweeps.launcher import SweepLauncher


class JobSweeper(Sweeper):
    """Sweeper whose jobs are run by a `SweepLauncher`.

    Args:
        params: Values by key, as on Hydra's command line.
    """

    def __init__(self, params: Mapping[str, str]) -> None:
        if not isinstance(params, Mapping):
            raise InputError(f"hydra.sweeper.params={params}: expected keys with values")
        self.params = params

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Build the launcher that Hydra has composed."""
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(launcher, SweepLauncher):
            raise InputError("hydra/launcher: expected local, submitit_slurm or submitit_local")
        self.launcher: SweepLauncher = launcher
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)

    def overrides(self, arguments: list[str]) -> list[Override]:
        """Return `params` and the command line's overrides; of one key the last counts."""
        given = [f"{key}={value}" for key, value in self.params.items()]
        overrides = self.parser.parse_overrides([*given, *arguments])
        if any(o.get_key_element() == "sweep" and o.is_sweep_override() for o in overrides):
            raise InputError("sweep: expected one named sweep, not a list; start them one by one")
        return list({override.get_key_element(): override for override in overrides}.values())
