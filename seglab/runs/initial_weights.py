"""Weights of an earlier run that training starts from, and the cases that they have seen."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from seglab.core.errors import InputError, name_some, printable
from seglab.core.files import hash_file
from seglab.data.classes import make_classes
from seglab.data.datamodule import SegmentationDataModule
from seglab.data.splits import read_split
from seglab.runs.checkpoints import read_checkpoint
from seglab.runs.paths import RunPaths, checkpoint_file
from seglab.runs.records import read_run
from seglab.runs.thumbnails import SeenCases, find_seen, read_seen_cases

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InitialWeights:
    """Weights of a network that was trained before, and the cases that they have seen.

    Attributes:
        model: `_target_` of that network.
        classes: Names of its classes.
        state: Its tensors by name.
        seen: Cases of train and val that it, or weights that it started from, was trained on, as
            far as its run directory tells.
        record: Section `init` of run.json.
    """

    model: str
    classes: tuple[str, ...]
    state: dict[str, Tensor]
    seen: SeenCases
    record: dict[str, Any]

    def load_into(self, net: nn.Module, model: str, classes: Sequence[str]) -> None:
        """Copies the weights; where the classes are others, those of the head stay as they are.

        Raises an InputError if the network, whose `_target_` is `model`, is another one.
        """
        then = {name: tuple(tensor.shape) for name, tensor in self.state.items()}
        now = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
        if self.classes != tuple(classes):
            self.record["new"] = _find_head(then, now, len(self.classes), len(classes))
        for name in {**now, **then}:
            if then.get(name) != now.get(name) and name not in self.record["new"]:
                shapes = [str(shapes.get(name, "missing")) for shapes in (then, now)]
                raise InputError(
                    f"init={self.record['path']}: holds weights of another network: "
                    f"{printable(self.model, 100)}, not this {model} ({printable(name, 100)} is "
                    f"{shapes[0]} there, {shapes[1]} here); give this run the same model, or "
                    "choose another init"
                )
        weights = {k: v for k, v in self.state.items() if k not in self.record["new"]}
        net.load_state_dict(weights, strict=False)

    def check_cases(self, data: SegmentationDataModule, classes: Sequence[str]) -> None:
        """Warns of what started anew and is unknown; refuses val and test cases that were seen."""
        if self.classes != tuple(classes):
            log.warning(
                "init: %s, because its classes are %s, not %s",
                f"{', '.join(self.record['new']) or 'no tensor'} started anew",
                *(name_some(names) for names in (self.classes, classes)),
            )
        if self.record["trained_on"] == "unknown":
            log.warning(
                "init: the training cases of its weights are unknown; cases of val and test may be "
                "among them, whose scores would then be too high"
            )
        found: set[str] = set()
        # To choose on the same val again is no leak.
        for part, held_out in (("train", ("val", "test")), ("val", ("test",))):
            rows = [row for subset in held_out for row in data.subset_indices(subset)]
            sha256 = {id: data.cache.sha256[id] for id in (data.cases[row].id for row in rows)}
            thumbnails = data.cache.thumbnails[rows]
            found |= find_seen(self.seen[part], sha256, thumbnails, data.find_duplicates)
        if found:
            raise InputError(
                f"init={self.record['path']}: was trained on {len(found)} cases that are val or "
                f"test here, or nearly the same pictures: {name_some(sorted(found))}; choose one "
                "of the same folds, such as 'init=runs/donor/fold-${data.split.fold}', or hold out "
                "other cases with data.split.file"
            )


def open_initial_weights(path: str) -> InitialWeights:
    """Reads the weights of a run directory or checkpoint; builds nothing that its config names.

    Raises an InputError if it holds none, is damaged, or is a run that is not finished.
    """
    file = checkpoint_file(path)
    if file.suffix.lower() == ".onnx":
        raise InputError(f"init={path}: an ONNX file cannot be trained; name its run directory")
    if not file.is_file():
        raise InputError(f"init={path}: expected a run directory or a checkpoint of train.py")
    checkpoint = read_checkpoint(file)
    metadata, weights = checkpoint["seglab"], checkpoint["state_dict"]
    weights = {k.removeprefix("net."): v for k, v in weights.items() if k.startswith("net.")}
    if not all(tensor.isfinite().all() for tensor in weights.values()):
        raise InputError(f"{file}: holds weights that are not finite; restore it")
    names, colours, values = map(metadata.get, ("classes", "colours", "lesion_values"))
    root = str(metadata["config"]["data"].get("root"))
    record = {
        "path": path,
        "sha256": hash_file(file),
        "data": printable(Path(root).name, 100),
        "trained_on": "unknown",
        "new": [],
    }
    seen: SeenCases = {"train": {}, "val": {}}
    paths = RunPaths(file.parent.parent)
    if paths.record.exists() and file.parent == paths.best_checkpoint.parent:
        run = read_run(paths.folder)
        if run.status != "finished" and Path(path).is_dir():
            raise InputError(
                f"init={path}: is not finished (status {run.status}); start its command again to "
                f"go on with it first, or name its checkpoint, {file}"
            )
        if not read_split(paths.split).hash == run.provenance.split_hash == metadata["split_hash"]:
            raise InputError(f"{paths.split}: is not the split that {file} was trained on")
        record |= {"run": run.label, "data_fingerprint": run.provenance.data}
        if paths.thumbnails.exists():
            seen = read_seen_cases(run)
            is_known = run.provenance.init_trained_on in ("", "known")
            record["trained_on"] = "known" if is_known else "unknown"
    classes = make_classes(names, colours, values, f"{file}: ").names
    return InitialWeights(metadata["config"]["model"]["_target_"], classes, weights, seen, record)


def _find_head(then: dict[str, Any], now: dict[str, Any], n_then: int, n_now: int) -> list[str]:
    """Returns the names of the tensors that have a channel for each class, by shapes."""
    if n_then == n_now:  # shapes do not tell; the head is the last layer
        last = takewhile(lambda item: item[1][:1] == (n_now,), reversed(now.items()))
        return [name for name, _ in last][::-1]
    return [
        name
        for name in now
        if name in then
        and len(now[name]) == len(then[name])
        and [pair for pair in zip(then[name], now[name], strict=True) if pair[0] != pair[1]]
        == [(n_then, n_now)]
    ]
