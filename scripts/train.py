"""Trains one run, or with -m a sweep: python scripts/train.py model=unet data=synthetic."""

import os

import hydra
from omegaconf import DictConfig

from seglab import sweep
from seglab.errors import one_line_errors
from seglab.interrupts import stop_with_launcher


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@one_line_errors
def _main(cfg: DictConfig) -> None:
    from seglab.train import train

    train(cfg)


@one_line_errors
def main() -> None:
    """Hydra composes the config; its own errors reach `one_line_errors` as they are."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    stop_with_launcher()
    sweep.register()
    _main()


if __name__ == "__main__":
    main()
