"""Sections and keys of a config, with the types, limits and examples of their values."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seglab.core.errors import InputError

TARGET_SECTIONS = ("data", "model", "task", "trainer", "callbacks", "logger")
SECTIONS = (
    *("name", "seed", "init", "monitor", "monitor_mode", "run_dir", "inference"),
    *TARGET_SECTIONS,
)
SET_KEYS = ("root", "cases", "mask_suffix", "lesion_values", "split", "weight")
SPLIT_KEYS = ("val", "test", "seed", "fold", "folds", "file", "train_share")

# Arguments of Lightning's Trainer that `build` gives it.
BUILT_ARGUMENTS = ("callbacks", "logger", "plugins", "default_root_dir", "enable_checkpointing")

# Lightning's callbacks that cannot work here, and why.
_FIXED = "changes a value that the config fixes; try several with"
REFUSED_CALLBACKS = {
    "BatchSizeFinder": f"{_FIXED} -m data.batch_size=8,16",
    "LearningRateFinder": f"{_FIXED} -m task.optimizer.lr=0.001,0.01",
    "StochasticWeightAveraging": "averages after the last epoch, when checkpoints are saved; "
    "callbacks=ema averages in each epoch",
}

# What other projects call it, lightning-hydra-template above all, and what to type here.
OTHER_PROJECTS_KEYS = {
    r"callbacks\.early_stopping": "type callbacks=early_stopping, too",
    r"ckpt_path": "hydra.run.dir=RUN goes on with a run, init=RUN starts from its weights",
    r"debug": "type trainer=debug",
    r"extras": "--cfg job prints the config",
    r"hparams_search": "type sweep=tpe",
    r"lr|(model\.)?optimizer": "type task.optimizer.lr=..., see task.optimizer",
    r"(model\.)?scheduler": "see task.lr_scheduler",
    r"paths|data\.data_dir": "data.root is the folder of the data, hydra.run.dir that of the run",
    r"tags|task_name": "type name=..., which names the run",
    r"train|test": "a run trains and scores the test set once; evaluate scores it again",
}

# Key, type, least, greatest, whether null is a value too, and an example.
NUMBERS: tuple[tuple[str, type, float, float, bool, float], ...] = (
    ("seed", int, 0, 2**63 - 1, False, 42),
    ("data.size", int, 1, 2**14, False, 256),
    ("data.batch_size", int, 1, math.inf, False, 32),
    ("data.eval_batch_size", int, 1, math.inf, False, 1),
    ("data.num_workers", int, 0, math.inf, False, 0),
    ("data.seed", int, 0, 2**63 - 1, False, 42),
    ("data.split.val", float, 0, 1, False, 0.1),
    ("data.split.test", float, 0.001, 0.999, False, 0.1),
    ("data.split.seed", int, 0, math.inf, False, 42),
    ("data.split.fold", int, 0, math.inf, True, 0),
    ("data.split.folds", int, 2, math.inf, False, 5),
    ("task.threshold", float, 0.001, 0.999, False, 0.5),
    ("task.encoder_lr_factor", float, 0, 1, False, 1),
    ("trainer.max_epochs", int, 1, math.inf, False, 30),
)
# As NUMBERS, of keys that a config may have.
OPTIONAL_NUMBERS: tuple[tuple[str, type, float, float, bool, float], ...] = (
    ("data.split.train_share", float, 1e-6, 1, False, 0.5),
    ("callbacks.early_stopping.patience", int, 0, math.inf, False, 10),
    ("callbacks.ema.decay", float, 0, 0.9999, False, 0.99),
    ("task.loss.alpha", float, 0, 1, False, 0.3),
    ("task.loss.beta", float, 0, 1, False, 0.7),
    ("task.loss.gamma", float, 0, 10, False, 2),
    ("task.loss.lesion_weight", float, 0, 1000, False, 1),
    ("task.loss.window", float, 0, 1, False, 0.1),
    ("task.optimizer.lr", float, 0, math.inf, False, 0.001),
    ("task.optimizer.weight_decay", float, 0, math.inf, False, 1e-6),
    ("task.lr_scheduler.epochs", int, 1, math.inf, False, 30),
    ("task.lr_scheduler.warmup", float, 0, 1, False, 0.1),
    ("task.lr_scheduler_config.frequency", int, 1, math.inf, False, 1),
)
# run_dir comes first: others may be interpolated from it.
PATHS = ("run_dir", "data.root", "data.cache_dir", "data.split.file", "init")
TEXTS = {  # and examples
    "name": "baseline",
    "run_dir": "runs/a",
    "monitor_mode": "max",
    "data.root": "data/PH2Dataset",
    "data.cache_dir": "/tmp/cache",
}
TARGETS = {  # and examples
    "task.loss": "task.loss._target_=seglab.losses.bce_dice",
    "task.optimizer": "task.optimizer._target_=torch.optim.AdamW",
    "task.lr_scheduler": "task.lr_scheduler={_target_: seglab.training.lr_schedulers.cosine, "
    "epochs: 30}",
}
# Of Lightning's; the others change the type of the weights, which are float32 everywhere else.
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16", 32, 16, None)


@dataclass(frozen=True)
class Inference:
    """Settings of prediction: test-time augmentation, threshold tuning, post-processing.

    Attributes:
        tta: Predict with test-time augmentation.
        tune_threshold: Choose the threshold on val, in place of `task.threshold`.
        largest_component: Keep only the largest lesion.
        fill_holes: Fill background that lesion encloses.
    """

    tta: bool = False
    tune_threshold: bool = False
    largest_component: bool = False
    fill_holes: bool = False


DEFAULT_INFERENCE = Inference()
INFERENCE_KEYS = tuple(asdict(DEFAULT_INFERENCE))


def read_inference(stored: Any, file: str | Path) -> Inference:
    """Reads section `inference` of an untrusted file, which may be older than some of the keys.

    Raises an InputError that names the file if a key is unknown or a value is not a bool.
    """
    if (
        not isinstance(stored, Mapping)
        or not stored.keys() <= {*INFERENCE_KEYS}
        or not all(type(value) is bool for value in stored.values())
    ):
        raise InputError(f"{file}: holds a wrong key or value of inference; restore it")
    return Inference(**stored)


def describe_unknown_key(key: str, known: Iterable[Any]) -> str:
    """Returns which keys there are, or what to type here for a key of another project."""
    for pattern, instead in OTHER_PROJECTS_KEYS.items():
        if re.match(rf"({pattern})(\.|$)", key):
            return f"{key}: unknown config key; {instead}"
    return f"{key}: unknown config key; expected one of {', '.join(map(str, known))}"


def config_differences(then: Any, now: Any) -> list[str]:
    """Describes keys with other values, 'seed: 1 then, 2 now', of what matters to a result."""
    then, now = result_settings(then), result_settings(now)
    return [
        f"{key}: {then.get(key, 'not there')} then, {now.get(key, 'not there')} now"
        # What was given comes before what is derived of it.
        for key in sorted({*then, *now}, key=lambda key: (key.count("."), key))
        if key not in then or key not in now or then[key] != now[key]
    ]


def result_settings(config: Any) -> dict[str, Any]:
    """Returns the values by dotted key that matter to a result."""
    flat = flatten({key: value for key, value in config.items() if key != "logger"})
    flat.pop("data.cache_dir", None)
    run_dir = flat.get("run_dir", "run_dir")
    return flat | {key: "run_dir" for key, value in flat.items() if value == run_dir}


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested dictionaries by dotted key; a list is one value."""
    if not isinstance(node, dict):
        return {prefix: node}
    flat: dict[str, Any] = {} if node else {prefix: {}}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
