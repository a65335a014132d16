"""Makes a folder of scores read like a run: masks of another program, networks on other data."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from seglab.core.commands import current_command
from seglab.core.files import write_atomic, write_json
from seglab.data.splits import Split
from seglab.runs import provenance
from seglab.runs.paths import FORMAT, RunPaths


def write_scored(
    paths: RunPaths, status: str, config: dict[str, Any], split: Split, **record: Any
) -> None:
    """Writes what a folder with summary.json and test_cases.csv lacks to be read as a `Run`.

    Args:
        paths: Of the folder. run.json is written last: without it the folder is no run.
        status: One of `seglab.runs.records.SCORED_ELSEWHERE`.
        config: As config.yaml of a run; of section `data` at least `root` and `classes`.
        split: Its test cases, and what is known of train and val.
        record: More of run.json, such as `notes`.
    """
    write_json(paths.split, split.to_json())
    write_atomic(paths.config, OmegaConf.to_yaml(config))
    write_json(
        paths.record,
        {
            "format": FORMAT,
            "status": status,
            "start": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": current_command(),
            "directory": str(Path.cwd()),
            "git": provenance.read_code_state()[0],
            "versions": provenance.installed_versions(),
            "machine": provenance.describe_machine(),
            "modules": {},
            "split_hash": split.hash,
            **record,
        },
    )
