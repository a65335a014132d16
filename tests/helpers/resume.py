"""What the tests of resumed runs share: short runs, and what must be equal when they end."""

from pathlib import Path
from typing import Any

from seglab.core.files import read_json
from seglab.runs.checkpoints import hash_weights, read_checkpoint

# Four steps an epoch, three epochs.
SHORT = ["data.batch_size=4", "trainer.max_epochs=3"]
# Without pictures a run takes half the time.
PLAIN = [*SHORT, "logger=none", "callbacks.pictures=null"]
# The second epoch is the best of three: in the third the rate is absurd.
RATES = [
    "monitor=train/loss",
    "monitor_mode=min",
    "task.optimizer.lr=0.01",
    "+task.lr_scheduler._target_=torch.optim.lr_scheduler.MultiStepLR",
    "+task.lr_scheduler._partial_=true",
    "+task.lr_scheduler.milestones=[2]",
    "+task.lr_scheduler.gamma=10000",
]
SECOND_IS_BEST = [*PLAIN, *RATES]
FULL = [*SHORT, *RATES, "inference.tune_threshold=true"]
CHECKPOINTS = ("best.ckpt", "last.ckpt")
FILES = (*("metrics.csv", "val_cases.csv", "test_cases.csv", "baseline_cases.csv", "splits.json"),)


def outcome(run: Path) -> dict[str, Any]:
    """All that an interruption must not change, of a run that has ended well."""
    assert read_json(run / "run.json")["status"] == "finished"
    left = [p.name for p in run.rglob("*") if p.name.endswith((".partial", ".lock"))]
    assert not left, left
    summary = read_json(run / "summary.json")
    return {
        **{name: (run / name).read_bytes() for name in FILES if (run / name).exists()},
        **{name: hash_weights(run / "checkpoints" / name) for name in CHECKPOINTS},
        **{key: summary[key] for key in ("val", "test", "baselines", "best_epoch", "threshold")},
        "of best.ckpt": read_checkpoint(run / "checkpoints" / "best.ckpt")["seglab"]["threshold"],
        "files": sorted({p.name for p in run.rglob("*") if "tfevents" not in p.name}),
    }


def assert_same(run: Path, reference: Path) -> None:
    found, expected = outcome(run), outcome(reference)
    assert [name for name in expected if found[name] != expected[name]] == []
