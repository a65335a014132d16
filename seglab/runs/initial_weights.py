"""Weights of an earlier run that training starts from, and the cases that they have seen."""

import logging
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from seglab.core.errors import InputError, name_some, printable
from seglab.core.files import hash_file
from seglab.data.datamodule import SegmentationDataModule
from seglab.runs.checkpoints import read_weights
from seglab.runs.paths import RunPaths, checkpoint_file
from seglab.runs.records import read_run
from seglab.runs.thumbnails import SeenCases, find_seen, read_seen_cases

log = logging.getLogger(__name__)


class InitialWeights(NamedTuple):
    """Weights of a network that was trained before."""

    weights: dict[str, Tensor]  # by name
    seen: SeenCases  # as far as it is known
    record: dict[str, Any]  # section `init` of run.json

    def load_into(self, net: nn.Module, model: str, classes: Sequence[str]) -> None:
        """Copies the weights into a network; where the classes differ its head starts anew.

        With another number of classes the head is every tensor whose shape differs by that number
        alone; with other names of as many classes it is the last layer.

        Args:
            net: Gets the weights.
            model: Its `_target_`, for messages.
            classes: Its classes.

        Raises:
            InputError: The weights are of another network.
        """
        state, counts = net.state_dict(), (len(self.record["classes"]), len(classes))
        if counts[0] != counts[1]:
            for name in (name for name in state if name in self.weights):
                sizes = zip(self.weights[name].shape, state[name].shape, strict=False)
                if {pair for pair in sizes if pair[0] != pair[1]} == {counts}:
                    self.record["new"].append(name)
        elif self.record["classes"] != list(classes):  # shapes do not tell: the last layer
            head = takewhile(lambda name: len(classes) in state[name].shape[:2], reversed(state))
            self.record["new"] += [*head][::-1]
        try:
            net.load_state_dict(self.weights | {name: state[name] for name in self.record["new"]})
        except RuntimeError as error:
            difference = printable(str(error).splitlines()[1].strip(), 200)
            raise InputError(
                f"init={self.record['path']}: holds {self.record['model']}, another network than "
                f"this {model} ({difference}); give both the same model"
            ) from error

    def check_cases(self, data: SegmentationDataModule) -> None:
        """Warns of what started anew and of unknown training cases.

        Raises an InputError if the weights were trained on a case that is now val or test, or
        chosen on one that is now test.
        """
        path, names, new = (self.record[key] for key in ("path", "classes", "new"))
        if names != list(data.classes.names):
            log.warning("init=%s: of other classes, %s; start anew: %s", path, names, new)
        if self.record["trained_on"] == "unknown":
            log.warning("init=%s: its training cases are unknown, test may hold some", path)
        found: set[str] = set()
        # To choose on the same val again is no leak.
        for part, held_out in (("train", ("val", "test")), ("val", ("test",))):
            rows = [row for subset in held_out for row in data.subset_indices(subset)]
            sha256 = {data.cases[row].id: data.cache.sha256[data.cases[row].id] for row in rows}
            pictures = data.cache.thumbnails[rows]
            found.update(find_seen(self.seen[part], sha256, pictures, data.find_duplicates))
        if found:
            raise InputError(
                f"init={path}: was trained on {len(found)} cases of val and test, or nearly the "
                f"same pictures ({name_some(sorted(found))}); choose a run of the same folds, such "
                "as 'init=runs/first/fold-${data.split.fold}', or another data.split.file"
            )


def open_initial_weights(path: str) -> InitialWeights:
    """Reads weights from a run directory, its best.ckpt, or from a checkpoint.

    Nothing that its config names is built. Raises an InputError if it holds no weights, is damaged,
    or is a run that is not finished.
    """
    file = checkpoint_file(path)
    if not file.is_file() or file.suffix.lower() == ".onnx":
        raise InputError(f"init={path}: expected a run directory or checkpoint of seglab train")
    weights, metadata = read_weights(file)
    config, seen = metadata["config"], SeenCases({"train": {}, "val": {}})
    record = {"path": path, "sha256": hash_file(file), "trained_on": "unknown", "new": []}
    record["model"] = printable(config["model"]["_target_"], 100)
    record["classes"] = list(metadata["classes"].names)
    record["data"] = printable(Path(str(config["data"].get("root"))).name, 100)
    paths = RunPaths(file.parent.parent)
    if file.parent == paths.best_checkpoint.parent and paths.record.exists():
        run = read_run(paths.folder)
        if run.status != "finished" and Path(path).is_dir():
            raise InputError(f"init={path}: is not finished; go on with it first, or name {file}")
        if run.provenance.split_hash != metadata["split_hash"]:
            raise InputError(f"{file}: is not of the run that it lies in; put its own file back")
        record |= {"run": run.label, "data_fingerprint": run.provenance.data}
        if paths.thumbnails.exists():
            seen = read_seen_cases(run)
            record["trained_on"] = run.provenance.init.get("trained_on", "known")
    return InitialWeights(weights, seen, record)
