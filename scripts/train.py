"""Trains one run, or with -m a sweep: python scripts/train.py model=unet data=synthetic."""

import gc
import os

import hydra
from omegaconf import DictConfig

from seglab.core.errors import one_line_errors
from seglab.core.signals import stop_with_launcher
from seglab.sweeps.plugins import register


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@one_line_errors
def _main(cfg: DictConfig) -> None:
    from seglab.runs.directory import refuse_early

    refuse_early(cfg)
    # Imports make a million objects that stay: looking for garbage among them takes seconds.
    gc.disable()
    from seglab.training.train import train

    if not gc.get_freeze_count():  # once, where a process trains several runs
        gc.freeze()
    gc.enable()
    train(cfg)


@one_line_errors
def main() -> None:
    """Hydra composes the config; its own errors reach `one_line_errors` as they are."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    stop_with_launcher()
    register()
    _main()


if __name__ == "__main__":
    main()
