"""A run that could not be done: why, in a file beside where its record would be, until it is done after all."""

from __future__ import annotations

import contextlib
import json
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bella.errors import UserError
from benchmarks.records import write_text

FILE = "failure.json"


@dataclass(frozen=True)
class Failure:
    """One failed run: its folder below the results folder, and the reason on one line."""

    folder: str
    reason: str


def reason_of(error: Exception) -> str:
    """An error on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def write_failure(error: Exception, folder: Path) -> None:
    """Record why a run has failed. Where that cannot be written either, the user is told all the same, and nothing is lost."""
    content = {
        "schema": 1,
        "reason": reason_of(error),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "traceback": traceback.format_exception(error),
    }
    with contextlib.suppress(OSError):
        write_text(folder / FILE, json.dumps(content, indent=1) + "\n")


def clear_failure(folder: Path) -> None:
    """The run is done."""
    with contextlib.suppress(OSError):  # a folder that cannot be written to holds its results all the same
        (folder / FILE).unlink(missing_ok=True)


def find_failures(out: Path) -> list[Failure]:
    """All failed runs of a results folder, by path; one that cannot be read has failed for a reason unknown."""
    found = []
    for path in sorted(out.glob(f"runs/*/*/*/{FILE}")):
        try:
            reason = str(json.loads(path.read_text(encoding="utf-8"))["reason"])
        except (OSError, ValueError, KeyError, TypeError):
            reason = f"{path} cannot be read"
        found.append(Failure(str(path.parent.relative_to(out / "runs")), reason))
    return found
