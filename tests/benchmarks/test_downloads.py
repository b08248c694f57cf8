"""What is fetched is verified, unpacked inside its folder, and not fetched twice."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import miniatures
import pytest

from bella.errors import UserError
from benchmarks import cli
from benchmarks.downloads import Archive, data_folder, fetch, unpack
from benchmarks.problems.cifar import Cifar10


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Counts what is asked for; a file called cut.bin ends before it says."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/cut.bin":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")
            return
        super().do_GET()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server on this machine: its address, and the folder it serves."""
    served = tmp_path / "served"
    served.mkdir()
    Quiet.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served))) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}", served
        running.shutdown()
        thread.join()


def make_tar(file: Path, members: dict[str, bytes | tarfile.TarInfo]) -> None:
    with tarfile.open(file, "w:gz" if file.name.endswith("gz") else "w") as made:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                made.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_real_download_the_whole_way(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`bella download cifar10`, from an archive on this machine; a second time nothing is asked for."""
    address, served = server
    miniatures.write_cifar10(tmp_path / "source")
    archive = served / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as made:
        made.add(tmp_path / "source" / "cifar-10-batches-py", "cifar-10-batches-py")
    checksum = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    monkeypatch.setattr(Cifar10, "archives", (Archive(f"{address}/{archive.name}", archive.name, "small", checksum),))
    monkeypatch.setenv("BELLA_DATA", str(tmp_path / "data"))
    assert data_folder("cifar10") == tmp_path / "data" / "cifar10"

    def bella(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["bella", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        told = capsys.readouterr()
        return int(stopped.value.code or 0), told.out, told.err

    code, out, _ = bella("download", "cifar10")
    assert code == 0
    assert "fetched, verified and unpacked" in out
    data = Cifar10().load(Cifar10.options(image_size=32))
    assert len(data.training) == 80
    assert bella("download", "cifar10")[1] == "cifar10: the data are at hand, nothing to fetch\n"
    assert Quiet.asked == ["/cifar-10-python.tar.gz"]
    assert bella("download", "cifar10", "--data", tmp_path / "elsewhere")[0] == 0
    assert (tmp_path / "elsewhere" / "cifar-10-batches-py" / "batches.meta").is_file()
    code, _, err = bella("download", "imagenet")
    assert code == 2
    assert "image-net.org" in err
    assert len(err.strip().splitlines()) == 1
    assert "did you mean 'cifar10'" in bella("download", "cifar1")[2]


def test_what_is_here_and_right_is_not_fetched_again(server: tuple[str, Path], tmp_path: Path) -> None:
    address, served = server
    make_tar(served / "a.tar", {"x/y.txt": b"hello"})
    right = f"md5:{hashlib.md5((served / 'a.tar').read_bytes()).hexdigest()}"
    archive = Archive(f"{address}/a.tar", "a.tar", "", right)
    told: list[tuple[str, int, int | None]] = []
    folder = tmp_path / "data"
    for _ in range(2):
        fetch([archive], folder, lambda *progress: told.append(progress))
    assert Quiet.asked == ["/a.tar"]
    size = (served / "a.tar").stat().st_size
    assert told[-1] == ("a.tar", size, size)
    assert (folder / "x" / "y.txt").read_bytes() == b"hello"
    (folder / "a.tar").write_bytes(b"damaged")
    fetch([archive], folder)
    assert len(Quiet.asked) == 2


def test_a_wrong_checksum_leaves_nothing(server: tuple[str, Path], tmp_path: Path) -> None:
    address, served = server
    make_tar(served / "a.tar", {"x.txt": b"hello"})
    with pytest.raises(UserError, match="its checksum is not md5:00"):
        fetch([Archive(f"{address}/a.tar", "a.tar", "", "md5:00")], tmp_path / "data")
    assert everything(tmp_path / "data") == set()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{address}/nothing.tar", "cannot be fetched .*404"),
        ("{address}/cut.bin", "cannot be fetched|ended after 4 of 100"),
        ("http://127.0.0.1:1/a.tar", "cannot be fetched"),
    ],
)
def test_a_failed_connection_is_one_line(url: str, message: str, server: tuple[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        fetch([Archive(url.format(address=server[0]), "a.bin", "")], tmp_path / "data")
    assert "\n" not in str(raised.value)
    assert everything(tmp_path / "data") == set()


def test_a_folder_that_cannot_be_written_is_named(server: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--data"):
        fetch([Archive(f"{server[0]}/a.tar", "a.tar", "")], tmp_path / "file" / "data")


@pytest.mark.parametrize(
    "bad",
    [
        {"../outside.txt": b"x"},
        {"ok/../../outside.txt": b"x"},
        {"/tmp/bella-outside.txt": b"x"},
        {"C:\\outside.txt": b"x"},
        {"..\\outside.txt": b"x"},
        {"out": link("out", "/etc")},
        {"out": link("out", "inside")},
        {"out": link("out", "../outside.txt", tarfile.LNKTYPE)},
        {"out": link("out", "", tarfile.FIFOTYPE)},
    ],
    ids=lambda members: repr(next(iter(members)))[:30],
)
@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_malicious_tars_write_nothing(bad: dict[str, Any], ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{ending}"
    make_tar(file, {"first.txt": b"x", **bad})
    with pytest.raises(UserError, match="not unpacked"):
        unpack(file, tmp_path / "data" / "own")
    assert everything(tmp_path) == {file.name, "data", "data/own"}
    assert not Path("/tmp/bella-outside.txt").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "ok/../../outside.txt", "/tmp/bella-outside.txt", "C:/outside.txt", "link"])
def test_malicious_zips_write_nothing(name: str, tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("first.txt", "x")
        info = zipfile.ZipInfo(name)
        if name == "link":
            info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        made.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="not unpacked"):
        unpack(file, tmp_path / "data" / "own")
    assert everything(tmp_path) == {file.name, "data", "data/own"}


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
@pytest.mark.parametrize("cut", [0, 60])
def test_damaged_archives_are_named(name: str, cut: int, tmp_path: Path) -> None:
    file = tmp_path / name
    if cut:
        if name.endswith("zip"):
            with zipfile.ZipFile(file, "w") as made:
                made.writestr("x.txt", "hello" * 100)
        else:
            make_tar(file, {"x.txt": b"hello" * 100})
        file.write_bytes(file.read_bytes()[:cut])
    else:
        file.write_bytes(b"no archive at all")
    with pytest.raises(UserError, match="damaged archive"):
        unpack(file, tmp_path / "data")
    assert everything(tmp_path / "data") == set()


def test_zips_and_further_archives_join_what_is_there(tmp_path: Path) -> None:
    for place in (1, 2):
        with zipfile.ZipFile(tmp_path / f"{place}.zip", "w") as made:
            made.writestr(f"real/class/{place}.jpg", str(place))
        unpack(tmp_path / f"{place}.zip", tmp_path / "data")
    assert everything(tmp_path / "data" / "real") == {"class", "class/1.jpg", "class/2.jpg"}
