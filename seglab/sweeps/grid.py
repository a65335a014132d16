"""Sweeper over all combinations of values, and over a list of named jobs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from seglab.core.errors import InputError
from seglab.runs.overrides import parse_overrides, varying_overrides
from seglab.sweeps.sweeper import JobSweeper


class GridSweeper(JobSweeper):
    """Runs every named job, or else the config as it is, with all combinations of `params`.

    Args:
        params: Values by key, as on Hydra's command line.
        jobs: Overrides by name. The name becomes the run's `name`; an item that is the name of an
            earlier job stands for the overrides of that job.
    """

    def __init__(self, params: Mapping[str, str], jobs: Mapping[str, Sequence[str]]) -> None:
        super().__init__(params)  # `setup` reads the jobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Build the launcher, and read the jobs."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.jobs: dict[str, list[str]] = {}
        # Interpolations stay as they are: each job resolves them in its own config.
        jobs: Any = OmegaConf.to_container(config.hydra.sweeper.jobs, resolve=False)
        for name, items in jobs.items():
            if not isinstance(items, list):
                raise InputError(f"hydra.sweeper.jobs.{name}={items}: expected a list of overrides")
            self.jobs[name] = [x for item in items for x in self.jobs.get(item, [item])]

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs."""
        choices: list[list[str]] = []
        for override in self.overrides(arguments):
            key = override.get_key_element()
            if not override.is_sweep_override():
                choices.append([str(override.input_line)])
            elif override.is_discrete_sweep():
                choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            else:
                raise InputError(
                    f"{key}: a grid takes lists, choice(...) and range(...); sweep=tpe searches "
                    "an interval"
                )
        combinations = [list(combination) for combination in itertools.product(*choices)]
        if not self.jobs:
            return self.launcher.launch(combinations, 0)
        overrides, names = [], []
        for name, items in self.jobs.items():
            for combination in combinations:
                # Hydra refuses a group that is chosen twice: what all jobs are given counts.
                given = parse_overrides(combination)
                kept = [item for item in items if not parse_overrides([item]).keys() & given.keys()]
                overrides.append([*kept, *combination, f"name={name}"])
                names.append([f"name={name}", *combination])
        return self.launcher.run_sweep(overrides, varying_overrides(names))
