"""Writes checkpoints with a hash at their end, and reads them without running code."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.fabric.plugins import CheckpointIO
from omegaconf import OmegaConf
from torch import Tensor, nn

from seglab.core.errors import InputError
from seglab.core.files import write_atomic
from seglab.data.classes import make_classes
from seglab.runs.loading import check_targets
from seglab.runs.paths import check_format, refuse_damaged
from seglab.runs.records import Run

_CHECKSUM_PREFIX = b"seglab sha256 "
_COMMENT_LENGTH = 2 + len(_CHECKSUM_PREFIX) + 64
_MAX_BYTES = 2**34  # a billion parameters with their optimizer's state
# Values that are read from a checkpoint, by dotted key, and what makes them valid.
_EXPECTED: dict[str, Callable[[Any], bool]] = {
    "epoch": lambda value: type(value) is int and 0 <= value < 2**63,
    "state_dict": lambda value: isinstance(value, dict) and _are_weights(value),
    "seglab.config.data.size": lambda value: type(value) is int and 0 < value <= 2**14,
    "seglab.config.model._target_": lambda value: type(value) is str,
    "seglab.split_hash": lambda value: type(value) is str,
    "seglab.threshold": lambda value: type(value) is float and 0 < value < 1,
}


class ChecksummedCheckpointIO(CheckpointIO):
    """Lightning plugin that writes each checkpoint atomically, with its own hash in it.

    It does not wait for the disk: a power cut may leave a checkpoint that is refused.

    The hash is the zip archive's comment: SHA-256 of all bytes before the comment's length. Any
    reader of torch's files reads them.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes plain containers and tensors; where that fails, what was there stays."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        buffer.seek(-2, io.SEEK_END)  # the length of the archive's comment, 0
        buffer.truncate()
        comment = _checksum_comment(buffer.getbuffer())
        buffer.write(comment)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getbuffer(), flush=False)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint to the CPU, as `read_checkpoint` does."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint."""
        Path(path).unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU; unpickles plain containers and tensors only.

    Raises an InputError if the file is missing, damaged or not a checkpoint of seglab.
    """
    path = Path(path)
    with refuse_damaged(path, _MAX_BYTES):
        content = path.read_bytes()
        if content[-_COMMENT_LENGTH:] != _checksum_comment(memoryview(content)[:-_COMMENT_LENGTH]):
            raise ValueError("cut short, changed or not of seglab: no right hash at its end")
        try:
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch raises for an archive that it has not written
            # Torch's message would tell how to load it all the same.
            raise ValueError("more than plain containers and tensors, perhaps code") from error
        check_format(checkpoint["seglab"], path)
        for key, is_valid in _EXPECTED.items():
            value = checkpoint
            for part in key.split("."):
                value = value[part]
            if not is_valid(value):
                raise ValueError(f"{key} is wrong")
    return checkpoint


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a network's tensors by name, all finite, and its metadata as `load_network` does."""
    checkpoint = read_checkpoint(path)
    metadata = checkpoint["seglab"] | {"epoch": checkpoint["epoch"] + 1}
    names, colours, values = map(metadata.get, ("classes", "colours", "lesion_values"))
    metadata["classes"] = make_classes(names, colours, values, f"{path}: ")
    state = checkpoint["state_dict"]
    weights = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    if not all(w.isfinite().all() for w in weights.values()):
        raise InputError(f"{path}: holds weights that are not finite; restore it")
    return weights, metadata


def load_network(path: str | Path, trust: tuple[str, ...] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuilds a network from its checkpoint alone.

    Args:
        path: A file that `train` wrote.
        trust: Names that its config may hold as `_target_` besides seglab's allowed targets.

    Returns:
        The network in eval mode on the CPU, and the checkpoint's metadata: `config`, `classes`
        (as `seglab.data.classes.Classes`), `threshold`, `split_hash`, and `epoch`, from 1.

    Raises:
        InputError: The file is missing or damaged, names code that is not trusted, or its weights
            are not finite or not those of its network.
    """
    weights, metadata = read_weights(path)
    check_targets(metadata["config"], path, trust)
    model = OmegaConf.create(metadata["config"]["model"])
    try:
        net = instantiate(model, _convert_="all")  # libraries ask isinstance(..., dict)
        net.load_state_dict(weights)
    except Exception as error:  # whatever a network raises for wrong arguments
        reason = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
        raise InputError(
            f"{path}: its weights are not those of the network that its config names "
            f"({model['_target_']}): {reason}"
        ) from error
    return net.eval(), metadata


def load_run_network(run: Run, trust: tuple[str, ...] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuilds the chosen network of a run, as `load_network`, if it is of its split and model."""
    file = run.paths.best_checkpoint
    net, metadata = load_network(file, trust)
    if run.provenance.split_hash != metadata["split_hash"]:
        raise InputError(
            f"{run.paths.split}: is not the split that {file} was trained on; put the run's own "
            "files back"
        )
    stored, config = metadata["config"], run.config
    for key, old, new in (
        ("model", stored["model"], config["model"]),
        ("data.size", stored["data"]["size"], config["data"]["size"]),
    ):
        if old != new:
            raise InputError(
                f"{file}: holds another network than {run.paths.config} says ({key}: {old}, not "
                f"{new}); put the run's own files back"
            )
    return net, metadata


def set_threshold(path: str | Path, threshold: float) -> None:
    """Writes another threshold into a checkpoint; all else in it stays."""
    checkpoint = read_checkpoint(path)
    checkpoint["seglab"] |= {"threshold": threshold}
    ChecksummedCheckpointIO().save_checkpoint(checkpoint, path)


def hash_weights(path: str | Path) -> str:
    """Returns the SHA-256 of a checkpoint's weights and buffers: names, types, shapes and values.

    Equal for equal networks, whatever else the file holds.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(read_checkpoint(path)["state_dict"].items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _checksum_comment(content: memoryview) -> bytes:
    """Returns the comment of an archive, after its length: the hash of all before."""
    comment = _CHECKSUM_PREFIX + hashlib.sha256(content).hexdigest().encode()
    return len(comment).to_bytes(2, "little") + comment


def _are_weights(values: dict[Any, Any]) -> bool:
    """Whether these are tensors on the CPU, under keys of text."""
    return all(
        isinstance(name, str) and isinstance(value, Tensor) and value.device.type == "cpu"
        for name, value in values.items()
    )
