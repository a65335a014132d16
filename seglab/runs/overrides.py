"""Formats and parses Hydra's command line overrides, and names jobs by them."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from seglab.composition import CONF
from seglab.core.commands import current_command, quote_for_shell

_LONGEST_NAME = 120  # file systems take 255 bytes


def quote_value(text: str | Path) -> str:
    """Returns a value quoted so that Hydra reads it as one text, whatever characters it holds."""
    text = str(text)
    if re.fullmatch(r"[A-Za-z0-9_.+-]*/[A-Za-z0-9_./+-]*", text):
        return text
    # Backslashes are doubled before a quote alone, the closing one too.
    text = re.sub(r"(\\*)'", lambda found: 2 * found[1] + "\\'", text)
    return f"'{text}{text[len(text.rstrip(chr(92))) :]}'"


def format_resumption(key: str, folder: Path) -> str:
    """Returns the command of this process, with a folder for hydra.run.dir or hydra.sweep.dir."""
    words = (word for word in current_command() if not word.startswith(f"{key}="))
    return quote_for_shell(*words, f"{key}={quote_value(folder)}")


def hydra_flags(config: DictConfig) -> list[str]:
    """Returns the flags of a sweep's command line that its jobs need too, such as --config-dir."""
    options = {"command-line": "--config-dir", "main": "--config-path"}
    flags = [
        f"{options[source.provider]}={source.path}"
        for source in config.hydra.runtime.config_sources
        if source.provider in options and source.path and Path(source.path) != CONF
    ]
    if config.hydra.job.config_name != "train":
        flags.append(f"--config-name={config.hydra.job.config_name}")
    of_sweep = re.compile(r"[+~]*hydra[./](mode|run|sweep|sweeper|launcher)\b")
    return flags + [o for o in config.hydra.overrides.hydra if not of_sweep.match(o)]


def parse_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """Returns the values of overrides `key=value` by key, without the signs + and ~."""
    parts = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in parts}


def varying_overrides(jobs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Returns for each job of a sweep the overrides, by key, that are not the same in all jobs."""
    parsed = [parse_overrides(job) for job in jobs]
    keys = dict.fromkeys(key for job in parsed for key in job)
    varying = [key for key in keys if len({job.get(key) for job in parsed}) > 1]
    return [{key: job[key] for key in varying if key in job} for job in parsed]


def shorten_keys(keys: Iterable[str]) -> dict[str, str]:
    """Returns the last part of each dotted key, or the whole key where that is not unique."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {k: name if [*last.values()].count(name) == 1 else k for k, name in last.items()}


def job_names(jobs: Sequence[Mapping[str, str]]) -> list[str]:
    """Names jobs by what varies, for folders: `model-unet_fold-0`; equal jobs have equal names.

    A name holds no sign of Hydra's grammar, so that a path of a run can be given as an override.
    """
    short = shorten_keys(key for job in jobs for key in job)
    names = [
        re.sub(r"[^A-Za-z0-9_.+-]", "_", "_".join(f"{short[k]}-{v}" for k, v in job.items()))
        for job in jobs
    ]
    texts = [str(job) for job in jobs]
    # Some file systems ignore case.
    counts = Counter(name.casefold() for name, _ in {*zip(names, texts, strict=True)})
    for i, text in enumerate(texts):
        if counts[names[i].casefold()] > 1 or len(names[i]) > _LONGEST_NAME:
            digest = hashlib.sha256(text.encode()).hexdigest()[:8]
            names[i] = f"{names[i][:_LONGEST_NAME]}-{digest}"
    return [name or "0" for name in names]
