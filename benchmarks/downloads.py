"""Where data sets lie, and how they get there: fetched, verified, unpacked. Nothing is written outside the folder named."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import stat
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, Literal

from bella.errors import UserError

BLOCK = 2**20

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, NotImplementedError, RuntimeError)
"""What the standard library raises on an archive that is none."""

Progress = Callable[[str, int, int | None], None]
"""Told (file name, bytes so far, bytes in all where the server says)."""


@dataclass(frozen=True)
class Archive:
    """One file to fetch; .tar, .tar.gz, .tgz and .zip are unpacked, anything else is the data itself.

    Attributes:
        url: where it is published.
        file: what it is called here.
        size: for people to read ("163 MB").
        checksum: "md5:..." or "sha256:...", hexadecimal; None where its publisher gives none.
        into: the folder inside the data folder that it is unpacked into.
    """

    url: str
    file: str
    size: str
    checksum: str | None = None
    into: str = ""


def data_folder(name: str) -> Path:
    """Where a data set lies unless told otherwise: $BELLA_DATA/NAME, or ~/.cache/bella/data/NAME."""
    root = os.environ.get("BELLA_DATA")
    return (Path(root).expanduser() if root else Path.home() / ".cache" / "bella" / "data") / name


def fetch(archives: Sequence[Archive], folder: Path, progress: Progress = lambda file, done, total: None) -> None:
    """Fetch what is not here yet, verify it, unpack it.

    Raises:
        UserError: no connection, a wrong checksum, a folder that cannot be written, an archive that is damaged or that would
            write elsewhere.
    """
    for archive in archives:
        file = folder / archive.file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (file.is_file() and _matches(file, archive.checksum)):
                _download(archive, file, progress)
            unpack(file, folder / archive.into)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error}); choose another folder with --data") from error


def _matches(file: Path, checksum: str | None) -> bool:
    """Whether a file has a checksum; without one, files that were fetched whole are the only ones of their name."""
    if checksum is None:
        return True
    algorithm, _, expected = checksum.partition(":")
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, algorithm).hexdigest() == expected


def _download(archive: Archive, file: Path, progress: Progress) -> None:
    """Stream to a temporary name beside the file, verify, rename."""
    request = urllib.request.Request(archive.url, headers={"User-Agent": "bella-bench"})
    partial = file.with_name(f".{file.name}.partial")
    try:
        with open(partial, "wb") as written:
            _stream(request, archive, written, progress)
        if not _matches(partial, archive.checksum):
            raise UserError(f"{archive.url}: its checksum is not {archive.checksum}: damaged on the way, or replaced; try again")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _stream(request: urllib.request.Request, archive: Archive, written: BinaryIO, progress: Progress) -> None:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            length = answer.headers.get("Content-Length")
            total = int(length) if length else None
            done = 0
            while block := answer.read(BLOCK):
                _write(written, block, archive.file)
                done += len(block)
                progress(archive.file, done, total)
    except (OSError, http.client.HTTPException, ValueError) as error:  # urllib's own errors are OSErrors
        raise UserError(
            f"{archive.url} cannot be fetched ({error}); try again, or "
            f"fetch it elsewhere and put it into the folder as {archive.file}"
        ) from error
    if total is not None and done != total:
        raise UserError(f"{archive.url}: the connection ended after {done} of {total} bytes; try again")


def _write(written: BinaryIO, block: bytes, name: str) -> None:
    """Write, and tell a full disk from a lost connection."""
    try:
        written.write(block)
    except OSError as error:
        raise UserError(f"{name}: cannot be written ({error}); choose another folder with --data") from error


def unpack(file: Path, folder: Path) -> None:
    """Unpack an archive into a folder: whole, or not at all. Other files are left as they are.

    Raises:
        UserError: it is damaged, holds links, or names places outside the folder.
    """
    is_zip = file.name.endswith(".zip")
    if not is_zip and not file.name.endswith((".tar", ".tar.gz", ".tgz")):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as place:
        try:
            (_unpack_zip if is_zip else _unpack_tar)(file, Path(place))
        except DAMAGED as error:
            raise UserError(f"{file}: a damaged archive ({error}); delete it and fetch it again") from error
        _move(Path(place), folder)


def _unpack_tar(file: Path, folder: Path) -> None:
    def checked(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        kind = "file" if member.isfile() or member.isdir() else "link" if member.issym() or member.islnk() else "other"
        _check_member(file, member.name, kind)  # type: ignore[arg-type]
        return tarfile.data_filter(member, path)

    with tarfile.open(file) as opened:
        opened.extractall(folder, filter=checked)


def _unpack_zip(file: Path, folder: Path) -> None:
    with zipfile.ZipFile(file) as opened:
        for member in opened.infolist():
            _check_member(file, member.filename, "link" if stat.S_ISLNK(member.external_attr >> 16) else "file")
        opened.extractall(folder)


def _check_member(file: Path, name: str, kind: Literal["file", "link", "other"]) -> None:
    """Refuse what no data set needs: links, devices, absolute names, names that climb."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or path.drive or ".." in path.parts:
            raise UserError(f"{file}: its member {name!r} would be written outside the folder: not unpacked; delete the archive")
    if kind != "file":
        raise UserError(f"{file}: its member {name!r} is no plain file or folder: not unpacked; delete the archive")


def _move(source: Path, target: Path) -> None:
    """Move a tree into another one, file by file."""
    for folder, _, files in os.walk(source):
        own = target / Path(folder).relative_to(source)
        own.mkdir(exist_ok=True)
        for name in files:
            os.replace(Path(folder) / name, own / name)


def download(name: str, folder: Path | None) -> str:
    """Fetch a problem's data into a folder (left out: its own), with a bar on a terminal; what was done, in a line.

    Raises:
        UserError: the problem's data cannot be fetched (the message says how to get them), or fetching failed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    from benchmarks.registries import PROBLEMS

    problem = PROBLEMS.resolve(name)()
    where = data_folder(name) if folder is None else folder.expanduser()
    named: dict[str, Any] = {"data": where} if folder is not None and "data" in problem.options.model_fields else {}
    options = problem.options(**named)
    missing = problem.missing(options)
    if missing is None:
        return f"{name}: the data are at hand, nothing to fetch"
    if not problem.archives:
        raise UserError(missing)

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def show(file: str, done: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=total)
            bars.update(tasks[file], completed=done, total=total)

        fetch(problem.archives, where, show)
    if (missing := problem.missing(options)) is not None:
        raise UserError(f"{name}: fetched, and still incomplete: {missing}")
    return f"{name}: fetched, verified and unpacked into {where}"
