"""All combinations, named jobs, and the sweeps in conf/sweep/."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
from helpers.tiny import REPO, Ended
from omegaconf import OmegaConf

from seglab import compose
from seglab.config import check_config
from seglab.data.augment import Augment
from seglab.runs.overrides import job_names, varying_overrides
from seglab.schema import config_differences
from seglab.sweeps.launcher import SweepLauncher

Sweep = Callable[..., dict[str, list[str]]]


@pytest.fixture
def planned(script: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Returns the overrides of a sweep's jobs by their names, without running them."""
    jobs: dict[str, list[str]] = {}

    def record(
        self: SweepLauncher,
        overrides: Sequence[list[str]],
        index: int,
        varies: Sequence[Mapping[str, str]] | None = None,
    ) -> None:
        varies = varying_overrides(overrides) if varies is None else varies
        jobs.update(zip(job_names(varies), overrides, strict=True))

    monkeypatch.setattr(SweepLauncher, "launch", record)

    def plan(*overrides: str) -> dict[str, list[str]]:
        jobs.clear()
        ended = script("train", *overrides)
        assert ended.code == 0, ended.err
        return dict(jobs)

    return plan


MODELS, SEEDS = ("model-segnet", "model-unet"), ("seed-0", "seed-1", "seed-2")


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("models", [f"{model}_{seed}" for model in MODELS for seed in SEEDS]),
        ("folds", [f"{model}_fold-{fold}" for model in MODELS for fold in range(5)]),
    ],
)
def test_a_named_sweep_needs_no_m(name: str, jobs: list[str], planned: Sweep) -> None:
    assert [*planned(f"sweep={name}")] == jobs


def jobs_in_file(name: str) -> list[str]:
    return [*OmegaConf.load(REPO / "conf" / "sweep" / f"{name}.yaml").hydra.sweeper.jobs]


@cache
def composed(*overrides: str) -> dict[str, Any]:
    given = [override for override in overrides if not override.startswith("sweep=")]
    return check_config(compose(["run_dir=nowhere", *given]))


def changes(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """Returns the differing keys of two jobs' configs, apart from the name."""
    return [
        text for text in config_differences(composed(*one), composed(*other)) if text[:5] != "name:"
    ]


def test_the_ablation_leads_from_the_recipe_to_the_best(planned: Sweep) -> None:
    jobs, common = planned("sweep=ablation"), ["data.size=128", "data.split.fold=0", "seed=0"]
    names = jobs_in_file("ablation")
    assert [*jobs] == [f"name-{name}_{seed}" for name in names for seed in SEEDS]
    steps = [jobs[f"name-{name}_seed-0"] for name in names]
    assert [composed(*step)["name"] for step in steps] == names
    assert not changes(steps[0], ["experiment=recipe", *common])
    assert not changes(steps[-1], ["experiment=best", *common])
    scratch = changes(steps[9], ["experiment=best_scratch", *common])
    default = {f"data.augment.{f.name}: not there then, {f.default} now" for f in fields(Augment)}
    assert {*scratch} <= default
    assert composed(*steps[3])["task"]["lr_scheduler"]["epochs"] == 60  # resolved by the job
    assert len({str(composed(*step)) for step in steps}) == len(steps)


def test_each_trial_by_hand_changes_one_thing_of_the_best(planned: Sweep) -> None:
    jobs = planned("sweep=tried")
    names = jobs_in_file("tried")
    assert [*jobs] == [f"name-{name}_{seed}" for name in names for seed in SEEDS]
    best, *others = [jobs[f"name-{name}_seed-0"] for name in names]
    for name, other in zip(names[1:], others, strict=True):
        changed = changes(best, other)
        sections = {text.partition(":")[0].rpartition(".")[0] for text in changed}
        assert len(sections) == 1 or name == "early_stopping", changed
    assert len({str(changes(best, other)) for other in others}) == len(others)


def test_what_is_given_for_all_jobs_replaces_what_a_job_says(planned: Sweep) -> None:
    jobs = planned(
        "-m",
        "+hydra.sweeper.jobs.a=['model=segnet', 'data.size=64']",
        "+hydra.sweeper.jobs.b=[a, '+trainer.max_steps=3']",
        "data.size=128",
        "model=unet",
        "trainer.max_epochs=1,2",
    )
    b = jobs["name-b_max_epochs-2"]
    assert [*jobs][:2] == ["name-a_max_epochs-1", "name-a_max_epochs-2"]
    assert "model=segnet" not in b and "model=unet" in b
    assert "data.size=64" not in b and "data.size=128" in b
    assert b[0] == "+trainer.max_steps=3" and b[-1] == "name=b"
