"""Files that are complete or absent, and a checksum of the tensors in them. Needs no torch."""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHECKSUM = "crc32"
"""Under this name a safetensors file's header holds the checksum of its tensors."""

_ENDING = ".tmp"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there is flushed and takes its place, or is gone after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_ENDING}")
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while writing have left in a folder that nobody else writes to now."""
    for path in folder.rglob(f"*{_ENDING}"):
        path.unlink(missing_ok=True)


def checksum(tensors: Iterable[tuple[str, str, tuple[int, ...], Any]]) -> str:
    """CRC-32 of tensors given as (name, dtype, shape, bytes), whatever their order."""
    crc = 0
    for name, dtype, shape, content in sorted(tensors, key=lambda tensor: tensor[0]):
        crc = zlib.crc32(f"{name} {dtype.removeprefix('torch.')} {shape}".encode(), crc)
        crc = zlib.crc32(content, crc)
    return f"{crc:08x}"
