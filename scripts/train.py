"""Trains one run, or with -m a sweep: python scripts/train.py model=unet data=synthetic."""

import os

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from seglab.errors import one_line_errors


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def _main(cfg: DictConfig) -> float | None:
    from seglab.train import train

    # A sweep's jobs hand their errors to Hydra; a single run ends with one line.
    run = train if HydraConfig.get().mode == RunMode.MULTIRUN else one_line_errors(train)
    return run(cfg).get(cfg.monitor)


@one_line_errors
def main() -> None:
    """Hydra composes the config; its own errors reach `one_line_errors` as they are."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    _main()


if __name__ == "__main__":
    main()
