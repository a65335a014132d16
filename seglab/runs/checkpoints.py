"""Checkpoints: written whole, sealed with a hash, read without running anything."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.fabric.plugins import CheckpointIO
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

from seglab.core.errors import InputError
from seglab.core.files import PARTIAL, write_atomic
from seglab.data.classes import make_classes
from seglab.runs.loading import ALLOWED_TARGETS, check_archive, check_targets

_SEAL = b"seglab sha256 "
_SEAL_LENGTH = len(_SEAL) + 64
# A file with holes may claim any size; this one is of a billion parameters and their optimizer's.
_MAX_SIZE = 2**34
_MAX_ARGUMENT = 2**13
# What is read of a checkpoint without asking again.
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
    """Lightning's checkpoints, whole or not there, with their own hash in them.

    The seal is the zip archive's comment: SHA-256 of all bytes before the comment's length. Any
    reader of torch's files reads them.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes plain containers and tensors.

        Raises:
            OSError: The disk is full, or cannot be written; what was there stays.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        buffer.seek(-2, io.SEEK_END)  # where the archive says how long its comment is: 0
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
    """Makes `target` the same file as `source`, atomically; a copy where links are not possible.

    Raises:
        OSError: It cannot be written; what was there stays.
    """
    link = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        os.link(source, link)
        link.replace(target)
    except OSError:
        write_atomic(target, source.read_bytes())
    finally:
        link.unlink(missing_ok=True)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint to the CPU; nothing is unpickled but plain containers and tensors.

    Raises:
        InputError: The file is missing, is not what was written, or no checkpoint of seglab's.
    """
    path = Path(path)
    try:
        content = _sealed_content(path)
        check_archive(content)
        with _no_warnings():
            checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a checkpoint of a run") from None
    except pickle.UnpicklingError as error:
        # Torch's own words would tell how to read it all the same.
        raise InputError(
            f"{path}: cannot be read as a checkpoint (it holds more than plain containers and "
            "tensors, perhaps code); put the run's own back"
        ) from error
    except Exception as error:  # what torch makes of an archive that it has not written
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}: cannot be read as a checkpoint ({reason}); restore it"
        ) from error
    for key, is_right in _EXPECTED.items():
        value: Any = checkpoint
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not is_right(value):
            raise InputError(
                f"{path}: no checkpoint of seglab's ({key} is not in it, or wrong); train it again"
            )
    weights = checkpoint["state_dict"]
    # A tensor may claim any shape over a storage of one number. Tied weights share theirs.
    if not all(isinstance(name, str) and _is_weight(w) for name, w in weights.items()) or sum(
        w.nbytes for w in weights.values()
    ) > 8 * len(content):
        raise InputError(f"{path}: holds weights that are none; restore it")
    return checkpoint


def load_network(path: str | Path, trust: tuple[str, ...] = ()) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuilds a network from its checkpoint alone.

    Args:
        path: A file that `train` wrote.
        trust: Modules whose names its config may use besides seglab's own, such as a library
            that a network comes from.

    Returns:
        The network in eval mode on the CPU, and what the checkpoint says of itself: `config`,
        `classes` (as `seglab.data.classes.Classes`), `threshold`, `split_hash`, and `epoch`,
        counted from 1.

    Raises:
        InputError: The file is missing, damaged, no checkpoint of seglab's, names code that is
            not trusted, or its weights do not fit its network, or are not finite.
    """
    checkpoint = read_checkpoint(path)
    stored = checkpoint["seglab"] | {"epoch": checkpoint["epoch"] + 1}
    # Of an older run there are no colours.
    stored["classes"] = make_classes(stored.get("classes"), stored.get("colours"), f"{path}: ")
    check_targets(stored["config"], path, trust)
    model = OmegaConf.create(stored["config"]["model"])
    every = checkpoint["state_dict"]
    weights = {k.removeprefix("net."): v for k, v in every.items() if k.startswith("net.")}
    if not all(w.isfinite().all() for w in weights.values()):
        raise InputError(f"{path}: holds weights that are not finite; restore it")
    try:
        if model["_target_"] in ALLOWED_TARGETS["model"]:
            _check_form(
                model, weights, stored["config"]["data"]["size"], len(stored["classes"].names)
            )
        net = instantiate(model)
        net.load_state_dict(weights)
    except Exception as error:  # whatever a network does with arguments that are none of its own
        reason = str(error).splitlines()[-1].strip() if str(error) else type(error).__name__
        raise InputError(
            f"{path}: its weights are those of another network than its config names "
            f"({model['_target_']}): {reason}"
        ) from error
    return net.eval(), stored


def set_threshold(path: str | Path, threshold: float) -> None:
    """Writes another threshold into a checkpoint; all else in it stays.

    Args:
        path: A file that `train` wrote; replaced as a whole or not at all.
        threshold: Probability above which a pixel is lesion.

    Raises:
        InputError: As `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path)
    checkpoint["seglab"] |= {"threshold": threshold}
    SealedCheckpoints().save_checkpoint(checkpoint, path)


def hash_weights(path: str | Path) -> str:
    """SHA-256 of a checkpoint's weights and buffers: names, types, shapes and values.

    Equal for equal networks, whatever else the file holds.

    Raises:
        InputError: As `read_checkpoint`.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(read_checkpoint(path)["state_dict"].items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sealed_content(path: Path) -> bytes:
    """What a sealed file holds, if that is what was written."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")  # a pipe would be waited on for ever
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _SEAL_LENGTH - 2))
        length, seal = file.read(2), file.read()
        if not seal.startswith(_SEAL) or length != _SEAL_LENGTH.to_bytes(2, "little"):
            raise ValueError("it is cut short, or not of seglab's: the hash at its end is missing")
        if size > _MAX_SIZE:
            raise ValueError(f"larger than {_MAX_SIZE:,} bytes")
        file.seek(0)
        content = file.read()
    digest = hashlib.sha256(memoryview(content)[: -_SEAL_LENGTH - 2])
    if digest.hexdigest().encode() != seal.removeprefix(_SEAL):
        raise ValueError("it is damaged: its content does not have the hash at its end")
    return content


def _check_form(model: DictConfig, weights: dict[str, Tensor], size: int, classes: int) -> None:
    """Builds a network of seglab's without memory: the file's own size bounds what it takes.

    Raises:
        Exception: It cannot be built, its weights are others, or it takes other images.
    """
    # Channels double with each level: those of a million levels are numbers too long.
    numbers = [
        n for value in model.values() for n in (value if isinstance(value, ListConfig) else [value])
    ]
    if any(isinstance(n, int) and n > _MAX_ARGUMENT for n in numbers):
        raise ValueError("its config asks for more than any file holds")
    with torch.device("meta"), torch.no_grad(), _no_warnings():
        net = instantiate(model).eval()
        shape = tuple(net(torch.empty(1, 3, size, size)).shape)
        net.load_state_dict(weights, assign=True)
    if shape != (1, classes, size, size):
        raise ValueError(f"it gives {shape} for an image of {(1, 3, size, size)}")


@contextmanager
def _no_warnings() -> Iterator[None]:
    """What torch thinks of a file that will be refused is no matter of the user's."""
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
