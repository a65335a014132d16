"""Composes a config in Python as the command line of train.py does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from seglab.cli.arguments import prepare_arguments
from seglab.cli.errors import find_input_error
from seglab.composition import CONF
from seglab.core.errors import InputError


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the config of one run, for `seglab.train`.

    Args:
        overrides: As on the command line, without the shell's quotes: `["model=unet", "seed=1"]`.
            `run_dir` or `hydra.run.dir` names the run directory; without it that is a new folder,
            runs/NAME/TIME.

    Returns:
        `conf/train.yaml`, composed; `run_dir` is the path of the run directory.

    Raises:
        InputError: Hydra refuses an override, or they start a sweep.
    """
    options = [word for word in overrides if word.startswith("-")]
    if options:
        raise InputError(f"{options[0]}: expected overrides KEY=VALUE; options are for commands")
    global_hydra = GlobalHydra.instance()
    before = global_hydra.hydra  # of a notebook that composes other configs, too
    global_hydra.clear()
    try:
        with hydra.initialize_config_dir(str(CONF), job_name="train", version_base="1.3"):
            cfg = hydra.compose("train", prepare_arguments(overrides), return_hydra_config=True)
        if cfg.hydra.mode == RunMode.MULTIRUN:
            raise InputError(
                f"{', '.join(overrides)}: expected the overrides of one run; sweeps are for the "
                "command line"
            )
        run_dir = _resolve_run_dir(cfg)
    except Exception as error:
        line = find_input_error(error)
        if line is None:
            raise
        raise InputError(line) from error
    finally:
        GlobalHydra.instance().hydra = before
    with open_dict(cfg):
        del cfg["hydra"]
    cfg.run_dir = run_dir
    return cfg


def _resolve_run_dir(cfg: DictConfig) -> str:
    """Return the path of the run directory, with `${hydra:...}` as in a command of Hydra's."""
    hydra_config = HydraConfig.instance()
    before = hydra_config.cfg
    hydra_config.set_config(cfg)
    try:
        output_dir = str(Path(cfg.hydra.run.dir).absolute())
        runtime: Any = HydraConfig.get().runtime
        with read_write(runtime):
            runtime.output_dir = output_dir
        return cfg.run_dir
    finally:
        hydra_config.cfg = before
