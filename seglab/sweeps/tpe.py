"""Search for hyperparameters on val: Optuna's TPE, and pruning by the curve of val."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep

from seglab.core.errors import InputError
from seglab.core.files import name_file_in_errors
from seglab.core.validation import check_number
from seglab.runs.overrides import format_run_command, job_names
from seglab.sweeps.launcher import PLUGINS, Job, JobSweeper

if TYPE_CHECKING:
    import optuna


class TPESweeper(JobSweeper):
    """Searches for what gives the best monitored value, which is one of val.

    Trials are asked for in generations. Nothing that a trial is decided on depends on how fast
    others are, so a search that was killed goes on as if it had not been, and the same command
    gives the same search. The study is Optuna's, in study.journal of the sweep's folder.

    Args:
        params: What to search, by key, as Hydra writes it: `tag(log, interval(1e-5, 1e-1))`,
            `int(interval(4, 32))`, `choice(a, b)`.
        n_trials: How many in all; more of them go on with the study.
        generation: How many are asked for at once; those of one do not know of each other.
        startup: Trials drawn at random before TPE begins (Bergstra et al. 2011), and completed
            ones before any is pruned.
        warmup: Epochs that no trial is pruned in.
        seed: Of the sampler.
    """

    __module__ = PLUGINS

    def __init__(
        self,
        params: dict[str, str],
        n_trials: int,
        generation: int,
        startup: int,
        warmup: int,
        seed: int,
    ) -> None:
        check_number("hydra.sweeper.n_trials", n_trials, int, 1)
        check_number("hydra.sweeper.generation", generation, int, 1)
        check_number("hydra.sweeper.startup", startup, int, 0)
        check_number("hydra.sweeper.warmup", warmup, int, 0)
        check_number("hydra.sweeper.seed", seed, int, 0, 2**31)
        super().__init__(params)
        self.n_trials = n_trials
        self.generation = generation
        self.startup = startup
        self.warmup = warmup
        self.seed = seed

    def sweep(self, arguments: list[str]) -> None:
        """Runs trials until there are `n_trials`."""
        if not str(self.launcher.monitor).startswith("val/"):
            raise InputError(
                f"monitor={self.launcher.monitor}: a search needs a value of val to look at, such "
                "as val/dice_per_image_net"
            )
        fixed, space = self._space(arguments)
        from optuna.trial import TrialState

        with self.launcher.sweeping(), name_file_in_errors(self.launcher.folder / "study.journal"):
            study = self._study(fixed, space)
            done = _told(study)
            self._remember(study.trials[:done], fixed)
            while done < self.n_trials and not self.launcher.interrupts.received_signal:
                end = min((done // self.generation + 1) * self.generation, self.n_trials)
                trials = [self._trial(study, number, space) for number in range(done, end)]
                self._run(study, trials, fixed)
                if _told(study) < end:
                    break  # a job was stopped: the same command goes on from here
                done = end
            self._remark(study, fixed)
            if done == self.n_trials and not study.get_trials(states=[TrialState.COMPLETE]):
                raise InputError(
                    f"{self.launcher.folder}: no trial finished; jobs.csv says why, and job.log in "
                    "the directory of each"
                )

    def _space(
        self, arguments: list[str]
    ) -> tuple[list[str], dict[str, optuna.distributions.BaseDistribution]]:
        """Overrides of all trials, and what is searched."""
        try:
            from optuna import distributions
        except ImportError:
            raise InputError(
                "sweep=tpe: needs Optuna; install it with pip install -e '.[search]'"
            ) from None

        fixed, space = [], {}
        for override in self.overrides(arguments):
            key, sweep = override.get_key_element(), override.value()
            if not override.is_sweep_override():
                fixed.append(str(override.input_line))
            elif key == "seed" or key.startswith(("data.seed", "data.split")):
                raise InputError(
                    f"{key}: a search would choose the luckiest; give one, or sweep over it as a "
                    "grid and compare"
                )
            elif isinstance(sweep, IntervalSweep):
                whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
                kind: Any = (
                    distributions.IntDistribution if whole else distributions.FloatDistribution
                )
                try:
                    space[key] = kind(sweep.start, sweep.end, log="log" in sweep.tags)
                except ValueError as error:
                    raise InputError(f"{override.input_line}: {error}") from error
            elif getattr(sweep, "shuffle", False):
                raise InputError(f"{override.input_line}: a search takes no shuffle(...)")
            else:
                values = list(override.sweep_string_iterator())
                space[key] = distributions.CategoricalDistribution(values)
        if not space:
            raise InputError(
                "hydra.sweeper.params: nothing to search; give an interval, such as "
                "'task.optimizer.lr=tag(log,interval(1e-4,1e-1))'"
            )
        return fixed, space

    def _study(
        self, fixed: list[str], space: dict[str, optuna.distributions.BaseDistribution]
    ) -> optuna.Study:
        """The study of this folder, begun or gone on with."""
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file = self.launcher.folder / "study.journal"
        _mend(file)
        try:
            study = optuna.create_study(
                storage=optuna.storages.JournalStorage(JournalFileBackend(str(file))),
                study_name="sweep",
                direction="maximize" if self.launcher.config.monitor_mode == "max" else "minimize",
                # Epochs are counted from 1, Optuna's steps from 0.
                pruner=optuna.pruners.MedianPruner(self.startup, self.warmup + 1),
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{file}: cannot be read as a study ({error}); restore it, or name another "
                "directory with hydra.sweep.dir=..."
            ) from error
        search = {
            "monitor": self.launcher.monitor,
            "space": {key: str(distribution) for key, distribution in space.items()},
            "fixed": fixed,
            "generation": self.generation,
            "startup": self.startup,
            "warmup": self.warmup,
            "seed": self.seed,
        }
        then = study.user_attrs.get("search", search)
        for key, value in search.items():
            if then.get(key) != value:
                raise InputError(
                    f"{file}: holds a search with another {key} ({then.get(key)} then, {value} "
                    "now); give the same one, or name another directory with hydra.sweep.dir=..."
                )
        study.set_user_attr("search", search)
        return study

    def _trial(
        self,
        study: optuna.Study,
        number: int,
        space: dict[str, optuna.distributions.BaseDistribution],
    ) -> optuna.Trial:
        """A trial with all its parameters, asked for now or before an interruption."""
        from optuna import distributions, samplers
        from optuna.trial import Trial

        def seeded(draw: int) -> samplers.TPESampler:
            # One for each draw: it is the same one after an interruption.
            seed = self.seed + number * (len(space) + 1) + draw
            return samplers.TPESampler(n_startup_trials=self.startup, seed=seed)

        study.sampler = seeded(0)
        if number < len(study.trials):
            trial = Trial(study, study.trials[number]._trial_id)
        else:
            trial = study.ask()
        _ = (
            trial.relative_params
        )  # draws now what TPE draws at once, else with the first suggestion
        for i, (key, kind) in enumerate(space.items(), 1):
            study.sampler = seeded(i)
            if isinstance(kind, distributions.FloatDistribution):
                trial.suggest_float(key, kind.low, kind.high, log=kind.log)
            elif isinstance(kind, distributions.IntDistribution):
                trial.suggest_int(key, kind.low, kind.high, log=kind.log)
            elif isinstance(kind, distributions.CategoricalDistribution):
                trial.suggest_categorical(key, kind.choices)
        return trial

    def _jobs(
        self, trials: Sequence[optuna.Trial | optuna.trial.FrozenTrial], fixed: list[str]
    ) -> list[Job]:
        """A job for each trial."""
        varies = [{key: str(value) for key, value in t.params.items()} for t in trials]
        short = [{key: _short(value) for key, value in t.params.items()} for t in trials]
        names = [
            job_names([{"trial": f"{trial.number:03}"} | values])[0]
            for trial, values in zip(trials, short, strict=True)
        ]
        overrides = [[*fixed, *(f"{key}={value}" for key, value in v.items())] for v in varies]
        return self.launcher.plan(names, overrides, [_plain(v) for v in varies])

    def _remember(self, trials: Sequence[optuna.trial.FrozenTrial], fixed: list[str]) -> None:
        """Puts trials that were told before an interruption into the table."""
        from optuna.trial import TrialState

        if not trials:
            return
        for trial, job in zip(trials, self._jobs(trials, fixed), strict=True):
            job.before = trial.state == TrialState.COMPLETE
            job.answered = trial.state == TrialState.FAIL
            if trial.state == TrialState.PRUNED:
                job.stopped = job.record.get("error") or "pruned"

    def _run(self, study: optuna.Study, trials: list[optuna.Trial], fixed: list[str]) -> None:
        """Runs the trials of a generation, and tells the study in their order."""
        from optuna.trial import TrialState

        jobs = self._jobs(trials, fixed)
        # What trials of this generation were told before an interruption must not matter.
        first = trials[0].number // self.generation * self.generation
        earlier: Any = SimpleNamespace(
            direction=study.direction,
            get_trials=lambda **options: [
                trial for trial in study.get_trials(**options) if trial.number < first
            ],
        )
        of_job = {id(job): trial for trial, job in zip(trials, jobs, strict=True)}

        def watch(job: Job) -> str:
            trial = of_job[id(job)]
            reported = study.trials[trial.number].intermediate_values
            for row in job.rows:
                epoch, value = int(row["epoch"]), row.get(self.launcher.monitor)
                if not value:
                    continue  # val was not scored after this epoch
                if epoch not in reported:
                    trial.report(float(value), epoch)
                elif epoch < max(reported):
                    continue  # the study has looked at it before an interruption
                if study.pruner.prune(earlier, study.trials[trial.number]):
                    return (
                        f"pruned after epoch {epoch}: {self.launcher.monitor} {float(value):.4f} "
                        "is worse than the median of earlier trials"
                    )
            return ""

        self.launcher.run(jobs, watch)
        for trial, job in zip(trials, jobs, strict=True):
            status, value = self.launcher.status(job), self.launcher.value(job)
            if status == "pruned":
                study.tell(trial, state=TrialState.PRUNED)
            elif status == "finished" and value is not None:
                study.tell(trial, value)
            elif status in ("finished", "failed") and not job.failure:
                job.answered = True
                study.tell(trial, state=TrialState.FAIL)
            else:
                return

    def _remark(self, study: optuna.Study, fixed: list[str]) -> None:
        """Says which trial was best, and how to train it again."""
        from optuna.trial import TrialState

        if not study.get_trials(states=[TrialState.COMPLETE]):
            return
        best = study.best_trial
        params = [f"{key}={value}" for key, value in best.params.items()]
        self.launcher.remarks += [
            f"best         trial {best.number:03}, {self.launcher.monitor} {best.value:.4f}",
            f"again        {format_run_command([*fixed, *params, 'hydra.mode=RUN'])}",
        ]


def _told(study: optuna.Study) -> int:
    """How many trials are done with: the first ones, since they are told in order."""
    return sum(trial.state.is_finished() for trial in study.trials)


def _mend(file: Path) -> None:
    """Takes the line away that a killed process has left unfinished, and its lock."""
    Path(f"{file}.lock").unlink(missing_ok=True)  # the sweep's own lock is held
    if file.exists():
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(file, whole)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(varies: dict[str, str]) -> dict[str, str]:
    return {key.lstrip("+"): value for key, value in varies.items()}
