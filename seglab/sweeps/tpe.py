"""Sweeper that searches hyperparameters on val: Optuna's TPE, and pruning by the val curve."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override

from seglab.core.errors import InputError, check_number
from seglab.core.files import read_json
from seglab.runs.overrides import parse_overrides
from seglab.runs.paths import RunPaths
from seglab.sweeps.grid import JobSweeper

if TYPE_CHECKING:
    import optuna

    Space = dict[str, optuna.distributions.BaseDistribution]


log = logging.getLogger("seglab")

FIRST_PRUNED_EPOCH = 5  # Optuna's default, 0, would prune by values that still jump


class TPESweeper(JobSweeper):
    """Searches for the best monitored value of val.

    Trials are asked for in batches and their results are told in order, so the same command gives
    the same search. What the study knows is read from the run directories of its trials: a
    search that is started again asks for the earlier trials first, of which finished and pruned
    ones are not run again.

    Args:
        params: What to search by key, as on Hydra's command line: `tag(log, interval(1e-5, 1e-1))`,
            `int(interval(4, 32))`, `choice(a, b)`.
        n_trials: Number of trials in all; a larger number continues the search.
        batch_size: Number of trials that are asked for at once, which do not know of each other.
        seed: Seed of the sampler.
    """

    def __init__(self, params: dict[str, str], n_trials: int, batch_size: int, seed: int) -> None:
        super().__init__(params)
        check_number("hydra.sweeper.n_trials", n_trials, int, 1)
        check_number("hydra.sweeper.batch_size", batch_size, int, 1)
        check_number("hydra.sweeper.seed", seed, int, 0, 2**31)
        self.n_trials = n_trials
        self.batch_size = batch_size
        self.seed = seed

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are `n_trials`."""
        self.monitor = self.launcher.monitor
        if not str(self.monitor).startswith("val/"):
            raise InputError(
                f"monitor={self.monitor}: a search needs a value of val to look at, such as "
                "val/dice_per_image_net"
            )
        self.fixed, self.space = self._split_overrides(arguments)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            direction="maximize" if self.launcher.config.monitor_mode == "max" else "minimize",
            pruner=optuna.pruners.MedianPruner(n_warmup_steps=FIRST_PRUNED_EPOCH),
        )
        with self.launcher.sweeping(may_fail=True):
            for start in range(0, self.n_trials, self.batch_size):
                numbers = range(start, min(start + self.batch_size, self.n_trials))
                self._run_batch(study, numbers)
                if self.launcher.interrupts.received_signal:
                    break
            completed = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
            if completed:
                best = study.best_trial
                log.info("best trial: %03d, %s %.4f", best.number, self.monitor, best.value)
        if not completed:
            raise InputError(
                f"{self.launcher.folder}: no trial finished; jobs.csv says why, and job.log in the "
                "directory of each"
            )

    def _split_overrides(self, arguments: list[str]) -> tuple[list[str], Space]:
        """Return the overrides of all trials, and the distributions to search, by key."""
        fixed, space = [], {}
        for override in self.overrides(arguments):
            key = override.get_key_element()
            if not override.is_sweep_override():
                fixed.append(str(override.input_line))
            elif key == "seed" or key.startswith(("data.seed", "data.split")):
                raise InputError(
                    f"{key}: a search would choose the luckiest; give one, or sweep over it as a "
                    "grid and compare"
                )
            else:
                space[key] = _make_distribution(override)
        if not space:
            raise InputError(
                "hydra.sweeper.params: nothing to search; give an interval, such as "
                "'task.optimizer.lr=tag(log,interval(1e-4,1e-1))'"
            )
        return fixed, space

    def _run_batch(self, study: optuna.Study, numbers: Sequence[int]) -> None:
        """Ask the study for trials, run them, and tell it their results."""
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        names = [f"trial-{number:03}" for number in numbers]
        trials = []
        for number, name in zip(numbers, names, strict=True):
            file = RunPaths(self.launcher.folder / name).record
            if file.exists():
                self._enqueue_earlier(study, file)
            # A sampler for each trial: its draws do not depend on where the search was started.
            study.sampler = TPESampler(seed=self.seed + number)
            trials.append(study.ask(self.space))
        params = [[f"{key}={value}" for key, value in trial.params.items()] for trial in trials]
        overrides = [[*self.fixed, *items] for items in params]
        jobs = self.launcher.plan(names, overrides, [parse_overrides(items) for items in params])
        trial_of_job = dict(zip(jobs, trials, strict=True))
        self.launcher.run(jobs, lambda job, rows: self._report(trial_of_job[job], rows))
        for trial, job in zip(trials, jobs, strict=True):
            value = job.value(self.monitor)
            failed = TrialState.PRUNED if job.status == "pruned" else TrialState.FAIL
            study.tell(trial, value, failed if value is None else None)

    def _enqueue_earlier(self, study: optuna.Study, file: Path) -> None:
        """Make the next trial that is asked for that of a run.json, if it is of this search."""
        with suppress(InputError, LookupError, ValueError):  # planning refuses another search
            texts = read_json(file)["varies"]
            params = {
                key: kind.to_external_repr(kind.to_internal_repr(texts[key.lstrip("+")]))
                for key, kind in self.space.items()
            }
            study.enqueue_trial(params)

    def _report(self, trial: optuna.Trial, rows: Sequence[Mapping[str, str]]) -> str:
        """Report new epochs of a trial; return why to prune it, or nothing."""
        for row in rows:
            text = row.get(self.monitor)
            if not text:
                continue  # val was not scored after this epoch
            epoch, value = int(row["epoch"]), float(text)
            trial.report(value, epoch)
            if trial.should_prune():
                return (
                    f"pruned after epoch {epoch}: {self.monitor} {value:.4f} is worse than the "
                    "median of earlier trials"
                )
        return ""


def _make_distribution(override: Override) -> optuna.distributions.BaseDistribution:
    """Return Optuna's distribution of an interval or a list of values."""
    try:
        from optuna import distributions
    except ImportError:
        raise InputError(
            "sweep=tpe: needs Optuna; install it with pip install 'seglab[search]'"
        ) from None

    sweep: Any = override.value()
    if not isinstance(sweep, IntervalSweep):
        return distributions.CategoricalDistribution([*override.sweep_string_iterator()])
    is_integer = isinstance(sweep.start, int) and isinstance(sweep.end, int)
    kind: Any = distributions.IntDistribution if is_integer else distributions.FloatDistribution
    try:
        return kind(sweep.start, sweep.end, log="log" in sweep.tags)
    except ValueError as error:
        raise InputError(f"{override.input_line}: {error}") from error
