"""Writes checkpoints with a hash at their end, and reads them without running code."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.fabric.plugins import CheckpointIO
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from seglab.config import differences
from seglab.core.errors import InputError
from seglab.core.files import partial_path, write_atomic
from seglab.data.classes import make_classes
from seglab.runs.allowed_targets import ALLOWED_TARGETS
from seglab.runs.loading import check_targets
from seglab.runs.paths import RunPaths, check_format

log = logging.getLogger("seglab")

_SEAL = b"seglab sha256 "
_SEAL_LENGTH = len(_SEAL) + 64
_MAX_BYTES = 2**34  # a billion parameters with their optimizer's state
_MAX_ARGUMENT = 2**13  # of a network's constructor
# Values that are read from a checkpoint, by dotted key, and what makes them valid.
_EXPECTED: dict[str, Callable[[Any], bool]] = {
    "epoch": lambda value: type(value) is int and 0 <= value < 2**63,
    "global_step": lambda value: type(value) is int and 0 <= value < 2**63,
    "state_dict": lambda value: isinstance(value, dict),
    "seglab.config.data.size": lambda value: type(value) is int and 0 < value <= 2**14,
    "seglab.config.model._target_": lambda value: type(value) is str,
    "seglab.split_hash": lambda value: type(value) is str,
    "seglab.threshold": lambda value: type(value) is float and 0 < value < 1,
}


class SealedCheckpoints(CheckpointIO):
    """Lightning plugin that writes each checkpoint atomically, with its own hash in it.

    The hash is the zip archive's comment: SHA-256 of all bytes before the comment's length. Any
    reader of torch's files reads them.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes plain containers and tensors.

        Raises:
            OSError: The file cannot be written; what was there stays.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        buffer.seek(-2, io.SEEK_END)  # the length of the archive's comment, 0
        buffer.truncate()
        seal = _SEAL + hashlib.sha256(buffer.getbuffer()).hexdigest().encode()
        buffer.write(len(seal).to_bytes(2, "little") + seal)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getbuffer())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads a checkpoint to the CPU, as `read_checkpoint` does."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint."""
        Path(path).unlink(missing_ok=True)


def link_checkpoint(source: Path, target: Path) -> None:
    """Makes `target` a second name of the checkpoint `source`, or a copy where links fail.

    Both stay independent: a checkpoint is only ever replaced by a new file.

    Args:
        source: A checkpoint.
        target: Replaced atomically.

    Raises:
        OSError: The link cannot be made and the copy cannot be written.
    """
    partial = partial_path(target)
    try:
        with suppress(OSError):  # some file systems have no hard links
            os.link(source, partial)
            partial.replace(target)
            return
    finally:
        partial.unlink(missing_ok=True)
    write_atomic(target, source.read_bytes())


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU; unpickles plain containers and tensors only.

    Raises:
        InputError: The file is missing, damaged or not a checkpoint of seglab.
    """
    path = Path(path)
    try:
        content = _read_sealed(path)
        with _no_warnings():
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a checkpoint of a run") from None
    except pickle.UnpicklingError as error:
        # Torch's message would tell how to load it all the same.
        raise InputError(
            f"{path}: cannot be read as a checkpoint (it holds more than plain containers and "
            "tensors, perhaps code); put the run's own back"
        ) from error
    except Exception as error:  # whatever torch raises for an archive that it has not written
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as a checkpoint ({reason}); restore it"
        ) from error
    metadata = checkpoint.get("seglab") if isinstance(checkpoint, dict) else None
    if isinstance(metadata, dict):
        check_format(metadata, path)
    for key, is_valid in _EXPECTED.items():
        value: Any = checkpoint
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not is_valid(value):
            raise InputError(
                f"{path}: not a checkpoint of seglab ({key} is missing or wrong); train it again"
            )
    weights = checkpoint["state_dict"]
    # A tensor may claim any shape over a storage of one number; tied weights share a storage.
    if not all(isinstance(name, str) and _is_weight(w) for name, w in weights.items()) or sum(
        w.nbytes for w in weights.values()
    ) > 8 * len(content):
        raise InputError(f"{path}: holds weights that are not plain tensors; restore it")
    return checkpoint


def load_network(path: str | Path, trust: tuple[str, ...] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuilds a network from its checkpoint alone.

    Args:
        path: A file that `train` wrote.
        trust: Modules that its config may name besides seglab's allowed targets.

    Returns:
        The network in eval mode on the CPU, and the checkpoint's metadata: `config`, `classes`
        (as `seglab.data.classes.Classes`), `threshold`, `split_hash`, and `epoch`, from 1.

    Raises:
        InputError: As `read_checkpoint`; or it names code that is not trusted, or its weights
            are not finite or not those of its network.
    """
    checkpoint = read_checkpoint(path)
    metadata = checkpoint["seglab"] | {"epoch": checkpoint["epoch"] + 1}
    classes = make_classes(metadata.get("classes"), metadata.get("colours"), f"{path}: ")
    metadata["classes"] = classes
    check_targets(metadata["config"], path, trust)
    model = OmegaConf.create(metadata["config"]["model"])
    state = checkpoint["state_dict"]
    weights = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    if not all(w.isfinite().all() for w in weights.values()):
        raise InputError(f"{path}: holds weights that are not finite; restore it")
    try:
        if model["_target_"] in ALLOWED_TARGETS["model"]:
            _check_size(model, weights, metadata["config"]["data"]["size"], len(classes.names))
        net = instantiate(model)
        net.load_state_dict(weights)
    except Exception as error:  # whatever a network raises for wrong arguments
        reason = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
        raise InputError(
            f"{path}: its weights are not those of the network that its config names "
            f"({model['_target_']}): {reason}"
        ) from error
    return net.eval(), metadata


def find_checkpoint(paths: RunPaths, metadata: dict[str, Any]) -> tuple[Path | None, int]:
    """Finds where an interrupted run goes on: last.ckpt, or best.ckpt where that is damaged.

    A run whose best.ckpt is lost starts again, for last.ckpt does not hold its weights.

    Args:
        paths: Of the run directory.
        metadata: Section 'seglab' of the run's checkpoints.

    Returns:
        The checkpoint and its step; None and -1 where there is none.
    """
    best = _read_if_usable(paths.best_checkpoint, metadata)
    last = _read_if_usable(paths.last_checkpoint, metadata)
    for file, checkpoint in ((paths.last_checkpoint, last), (paths.best_checkpoint, best)):
        if checkpoint is not None:
            best_epoch = checkpoint["callbacks"]["RunRecorder"]["best_epoch"]
            # An older best.ckpt is of a run that started again and was interrupted too.
            if best_epoch is None or (best is not None and best["epoch"] + 1 >= best_epoch):
                return file, checkpoint["global_step"]
    return None, -1


def _read_if_usable(file: Path, metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Reads a checkpoint of this run; None, with a warning, where it is damaged or of another."""
    if not file.exists():
        return None
    try:
        checkpoint = read_checkpoint(file)
        stored = checkpoint["seglab"]
        if stored["split_hash"] != metadata["split_hash"] or differences(
            stored["config"], metadata["config"]
        ):
            raise InputError(f"{file}: is of another run; remove it")
        checkpoint["callbacks"]["RunRecorder"]["best_epoch"]
    except (InputError, KeyError, TypeError) as error:
        log.warning("not used: %s", str(error).rpartition(";")[0] or f"{file}: {error}")
        return None
    return checkpoint


def set_threshold(path: str | Path, threshold: float) -> None:
    """Writes another threshold into a checkpoint; all else in it stays.

    Args:
        path: A file that `train` wrote; replaced atomically.
        threshold: Probability above which a pixel is lesion.

    Raises:
        InputError: As `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    checkpoint["seglab"] |= {"threshold": threshold}
    SealedCheckpoints().save_checkpoint(checkpoint, path)


def hash_weights(path: str | Path) -> str:
    """Returns the SHA-256 of a checkpoint's weights and buffers: names, types, shapes and values.

    Equal for equal networks, whatever else the file holds.

    Raises:
        InputError: As `read_checkpoint`.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(read_checkpoint(path)["state_dict"].items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_sealed(path: Path) -> bytes:
    """Returns the content of a checkpoint whose hash is right."""
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")  # reading a pipe would wait for ever
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _SEAL_LENGTH - 2))
        length, seal = file.read(2), file.read()
        if not seal.startswith(_SEAL) or length != _SEAL_LENGTH.to_bytes(2, "little"):
            raise ValueError("cut short, or not of seglab: the hash at its end is missing")
        if size > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES:,} bytes")
        file.seek(0)
        content = file.read()
    digest = hashlib.sha256(memoryview(content)[: -_SEAL_LENGTH - 2])
    if digest.hexdigest().encode() != seal.removeprefix(_SEAL):
        raise ValueError("damaged: its content does not have the hash at its end")
    return content


def _check_size(model: DictConfig, weights: dict[str, Tensor], size: int, channels: int) -> None:
    """Builds a network of seglab's on the meta device: it may not need more memory than its file.

    Raises:
        Exception: It cannot be built, has other weights, or takes other images.
    """
    # Channels double with each level: a million levels would already fill the memory.
    numbers = [
        n for value in model.values() for n in (value if isinstance(value, ListConfig) else [value])
    ]
    if any(isinstance(n, int) and n > _MAX_ARGUMENT for n in numbers):
        raise ValueError("its config asks for more than any file holds")
    with torch.device("meta"), torch.no_grad(), _no_warnings():
        net = instantiate(model).eval()
        shape = tuple(net(torch.empty(1, 3, size, size)).shape)
        net.load_state_dict(weights, assign=True)
    if shape != (1, channels, size, size):
        raise ValueError(f"it gives {shape} for an image of {(1, 3, size, size)}")


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Hides torch's warnings about a file that will be refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_weight(value: Any) -> bool:
    """Whether it is a tensor of numbers that lie in memory one by one."""
    return (
        type(value) in (Tensor, nn.Parameter)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not (value.is_nested or value.is_quantized or value.is_complex() or value.is_neg())
    )
