"""Base of the sweepers, and the sweeper over all combinations of values."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from seglab.core.errors import InputError
from seglab.runs.overrides import parse_overrides, varying_overrides
from seglab.sweeps.launcher import SweepLauncher


class JobSweeper(Sweeper):
    """Sweeper whose jobs are run by a `SweepLauncher`.

    Args:
        params: Values by key, as on Hydra's command line.
    """

    def __init__(self, params: Mapping[str, str]) -> None:
        self.params = params

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Build the launcher that Hydra has composed."""
        self.sweeper_config = config.hydra.sweeper
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(launcher, SweepLauncher):
            raise InputError("hydra/launcher: expected local or submitit_slurm")
        self.launcher: SweepLauncher = launcher
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)

    def overrides(self, arguments: list[str]) -> list[Override]:
        """Return `params` and the command line's overrides; of one key the last counts."""
        given = [f"{key}={value}" for key, value in self.params.items()]
        overrides = self.parser.parse_overrides([*given, *arguments])
        if any(o.get_key_element() == "sweep" and o.is_sweep_override() for o in overrides):
            raise InputError("sweep: expected one named sweep, not a list; start them one by one")
        return list({override.get_key_element(): override for override in overrides}.values())


class GridSweeper(JobSweeper):
    """Runs every named job, or else the config as it is, with all combinations of `params`.

    Args:
        params: Values by key, as on Hydra's command line.
        jobs: Overrides by name. The name becomes the run's `name`; an item that is the name of an
            earlier job stands for the overrides of that job.
    """

    def __init__(self, params: Mapping[str, str], jobs: Mapping[str, Sequence[str]]) -> None:
        super().__init__(params)  # `sweep` reads the jobs from the config

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
        jobs = self._read_jobs()
        if not jobs:
            return self.launcher.launch(combinations, 0)
        overrides, names = [], []
        for name, items in jobs.items():
            for combination in combinations:
                # Hydra refuses a group that is chosen twice: what all jobs are given counts.
                given = parse_overrides(combination)
                not_overridden = [
                    item for item in items if not parse_overrides([item]).keys() & given.keys()
                ]
                overrides.append([*not_overridden, *combination, f"name={name}"])
                names.append([f"name={name}", *combination])
        return self.launcher.launch(overrides, 0, varying_overrides(names))

    def _read_jobs(self) -> dict[str, list[str]]:
        """Return the overrides of each named job."""
        jobs: dict[str, list[str]] = {}
        # Interpolations stay as they are: each job resolves them in its own config.
        stored: Any = OmegaConf.to_container(self.sweeper_config.jobs, resolve=False)
        for name, items in stored.items():
            if not isinstance(items, list):
                raise InputError(f"hydra.sweeper.jobs.{name}={items}: expected a list of overrides")
            jobs[name] = [override for item in items for override in jobs.get(item, [item])]
        return jobs
