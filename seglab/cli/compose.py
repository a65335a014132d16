"""Composes a config in Python as the command line of train.py does."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from seglab.cli.arguments import prepare_arguments
from seglab.cli.errors import find_input_error
from seglab.composition import CONF
from seglab.core.errors import InputError


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose the config of one run, for `seglab.train`.

    Args:
        overrides: As on the command line, without the shell's quotes: `["model=unet", "seed=1"]`.
            `run_dir` or `hydra.run.dir` names the run directory, by default runs/NAME/TIME.

    Raises an InputError in the words of the command line.
    """
    given = ", ".join(overrides)
    refusal = f"{given}: expected KEY=VALUE of one run; options and sweeps are the command line's"
    if any(word.startswith("-") for word in overrides):
        raise InputError(refusal)
    version.setbase("1.3")
    # Not hydra.compose(), which is in use where a notebook has called hydra.initialize().
    hydra = Hydra("train", ConfigLoaderImpl(create_config_search_path(str(CONF))))
    try:
        words = prepare_arguments(overrides)
        cfg = hydra.compose_config("train", words, RunMode.RUN, from_shell=False)
        raw: Any = OmegaConf.to_container(cfg)
        if "${hydra:" in str(raw["run_dir"]):  # known to commands of Hydra's alone
            cfg.run_dir = str(Path(cfg.hydra.run.dir).absolute())
    except Exception as error:
        line = find_input_error(error)
        if line is None:
            raise
        raise InputError(line) from error
    if cfg.hydra.mode == RunMode.MULTIRUN:
        raise InputError(refusal)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg
