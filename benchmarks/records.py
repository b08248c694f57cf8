"""One JSON record a run: its schema, written whole or not at all, read into a table of values."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from bella.errors import UserError
from bella.files import written_whole

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
FILE = "record.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=@-]*")


def check_name(name: str, what: str) -> str:
    """A name that may become a folder: letters, digits and `. _ + = @ -`, so that none climbs out of the results folder.

    Raises:
        UserError: any other.
    """
    if not _NAME.fullmatch(name) or len(name) > 100:
        raise UserError(f"{what} {name!r}: a name has letters, digits and . _ + = @ - and begins with a letter or digit")
    return name


class RunInfo(BaseModel):
    """What was run."""

    model_config = ConfigDict(extra="forbid")
    problem: str
    method: str
    label: str
    seed: int
    backbone: str
    weights: str
    data: str
    hash: str
    config: dict[str, Any]


class TaskResult(BaseModel):
    """The hash of a task's configuration: a result is good for that one only."""

    model_config = ConfigDict(extra="forbid")
    hash: str
    options: dict[str, Any]


class Record(BaseModel):
    """One run's record. Metrics are flat: task -> name -> value, with `null` where a metric is undefined.

    Its file has a checksum of all of this besides; those of earlier versions have none.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    schema_: int
    run: RunInfo
    training: dict[str, Any]
    tasks: dict[str, dict[str, float | None]]
    task_results: dict[str, TaskResult]
    costs: dict[str, float | int | str | None]
    environment: dict[str, Any]


def write_record(record: Record, folder: Path) -> None:
    """Write a run's record with a checksum of its content: to a temporary file, flushed, renamed."""
    content = {"schema": record.schema_, **record.model_dump(exclude={"schema_"})}
    write_text(folder / FILE, json.dumps({**content, "checksum": _digest(content)}, indent=1, allow_nan=False) + "\n")


def config_hash(config: Mapping[str, Any]) -> str:
    """10 hexadecimal digits that identify plain data."""
    return _digest(config)[:10]


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        UserError: it is damaged, or of another schema; names the file and the way out.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: a damaged record ({error}): remove its folder and run the suite again") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise UserError(f"{path}: record schema {schema!r}, this version reads {SCHEMA}: remove its folder and run the suite again")
    checksum = content.pop("checksum", None)
    found = _digest(content)
    content["schema_"] = content.pop("schema")
    try:
        record = Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: a damaged record ({place}: {first['msg']}): remove its folder and run the suite again") from error
    if checksum not in (None, found):
        raise UserError(f"{path}: a damaged record (its checksum is another one): remove its folder and run the suite again")
    for name in ("problem", "method", "label"):
        check_name(getattr(record.run, name), f"{path}: {name}")  # figures and published files are called by them
    return record


def to_frame(records: list[Record]) -> pd.DataFrame:
    """Records as a long table: problem, label, seed, task, metric, value; costs under the task "costs"."""
    import pandas as pd

    rows = []
    for record in records:
        key = {"problem": record.run.problem, "method": record.run.method, "label": record.run.label, "seed": record.run.seed}
        tasks: dict[str, Any] = {**record.tasks, "costs": record.costs}
        for task, metrics in tasks.items():
            for metric, value in metrics.items():
                if not isinstance(value, str):
                    rows.append({**key, "task": task, "metric": metric, "value": value})
    frame = pd.DataFrame(rows, columns=["problem", "method", "label", "seed", "task", "metric", "value"])
    return frame.astype({"value": float})
