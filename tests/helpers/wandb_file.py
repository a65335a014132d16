"""Reads the file that W&B writes offline: a log in LevelDB's format of protocol buffers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER = 2**15, 7


def read_records(file: Path) -> Iterator[Record]:
    content, at, record = file.read_bytes(), _HEADER, b""
    while at + _HEADER <= len(content):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER:  # padding: no part of a record begins here
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        if kind in (1, 4):  # the whole record, or its last part
            yield Record.FromString(record)
            record = b""


def read_wandb(file: Path) -> dict[str, Any]:
    """Id, hyperparameters and rows (with W&B's own columns) of a run; names of saved files."""
    found: dict[str, Any] = {"config": {}, "rows": [], "files": []}
    for record in read_records(file):
        if record.HasField("run"):
            found |= {"id": record.run.run_id, "group": record.run.run_group}
        updates = [*record.config.update, *record.run.config.update]
        found["config"] |= {item.key: json.loads(item.value_json) for item in updates}
        if record.HasField("history"):
            items = record.history.item
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            found["rows"].append(row)
        found["files"] += [item.path for item in record.files.files]
    return found
