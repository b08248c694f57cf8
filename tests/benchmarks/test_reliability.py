"""Nothing is lost: kills, races, full disks, vanished data, losses that are not finite, too little GPU memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import workers
from filelock import FileLock
from helpers import bella
from PIL import Image
from safetensors.torch import load_file

from bella.lowrank import LowRankParticles
from bella.resume import CHECKPOINT
from benchmarks import cli, executors, runner
from benchmarks.plan import make_plan
from benchmarks.suite import load_suite

TINY = workers.SUITE


def numbers(out: Path) -> dict[str, Any]:
    """All that an undisturbed run and an interrupted one must share."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("runs/*/*/*/record.json")):
        record = json.loads(path.read_text())
        training = record["training"]
        for epoch in training["epochs"]:
            del epoch["seconds"]
        tensors = {
            f"{file.name}/{name}": tensor
            for file in sorted(path.parent.rglob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }
        found[record["run"]["method"]] = (record["tasks"], training, {name: t.tolist() for name, t in tensors.items()})
    return found


def leftovers(out: Path) -> list[Path]:
    names = ("*.tmp", CHECKPOINT, "best-*", "failure.json")
    return [path for name in names for path in out.rglob(name)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    process = workers.start(TINY, folder / "out", folder / "log", 1000.0)
    process.join()
    assert process.exitcode == 0
    found = numbers(folder / "out")
    assert set(found) == {"svgd", "bella-svgd"}
    return found


def kill_and_repeat(kills: int, folder: Path, undisturbed: dict[str, Any], seed: int) -> int:
    """Kill a suite so many times at random moments; how often it came to its end meanwhile, each time with the same numbers.

    Half of the moments lie anywhere in what the suite needs on this machine, as busy as it is now (the starts that are left
    alone measure it), half soon after a random one of a start's checkpoints: most of the time goes into starting.
    """
    out, moments, finished, starts, whole = folder / "out", random.Random(seed), 0, 0, 0.0
    while kills:
        alone, fresh = starts % 11 == 0, not out.exists()
        starts += 1
        began, progress = time.monotonic(), workers.CONTEXT.Semaphore(0)
        process = workers.start(TINY, out, folder / "log", 0.0, progress=progress)
        if alone:
            process.join()
            whole = time.monotonic() - began if fresh else whole
        elif moments.random() < 0.5:
            process.join(moments.uniform(0.02, whole))
        else:
            steps = moments.randint(1, 8)
            while steps and process.is_alive():
                steps -= progress.acquire(timeout=0.01)
            process.join(moments.uniform(0.0, whole / 24))
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGKILL)
            process.join()
            kills -= 1
            assert len(list(out.rglob("best-*.safetensors"))) <= 4  # two a run
        else:
            assert process.exitcode == 0
            finished += 1
            assert numbers(out) == undisturbed
            shutil.rmtree(out)
    process = workers.start(TINY, out, folder / "log", 0.0)
    process.join()
    assert process.exitcode == 0
    assert numbers(out) == undisturbed
    assert not leftovers(out)
    return finished + 1


def test_fifty_kills_at_random_moments_change_no_number(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    finished = kill_and_repeat(50, tmp_path, undisturbed, seed=0)
    assert finished > 2  # so that kills hit every part, and the end is reached through them
    resumed = set((tmp_path / "log.resumed").read_text().splitlines())
    assert len(resumed) > 5  # trainings went on, from different places


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("seed", range(10))
def test_soak(seed: int, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    kill_and_repeat(200, tmp_path, undisturbed, seed=seed + 1)


def test_two_processes_share_the_work(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    pair = [workers.start(TINY, out, log, 0.0) for _ in range(2)]
    for process in pair:
        process.join()
        assert process.exitcode == 0
    assert sorted(log.read_text().split()) == sorted(str(path.parent.relative_to(out)) for path in out.rglob("record.json"))
    assert numbers(out) == undisturbed
    assert not leftovers(out)


def test_a_process_takes_over_from_one_that_is_killed(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    progress = workers.CONTEXT.Semaphore(0)
    first = workers.start(TINY, out, log, 0.0, progress=progress)
    for _ in range(2):  # a training begins, and its first checkpoint is written
        assert progress.acquire(timeout=120)
    os.kill(first.pid or 0, signal.SIGSTOP)
    second = workers.start(TINY, out, log, 0.0)
    second.join(1.0)
    assert second.is_alive()
    os.kill(first.pid or 0, signal.SIGKILL)
    second.join()
    assert second.exitcode == 0
    assert numbers(out) == undisturbed


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(folder)], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("no permission to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_fails_what_does_not_fit_and_harms_nothing(
    small_disk: Path, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """Full-rank particles do not fit beside what fills the disk, low-rank ones do; with room again only the failed run is done."""
    out = small_disk / "out"
    process = workers.start(TINY, out, tmp_path / "log", 0.0)
    process.join()
    assert process.exitcode == 1
    lines = (tmp_path / "log").read_text().splitlines()
    assert any(line.startswith("failed: ") and "space" in line for line in lines), lines
    assert [line for line in lines if "bella-svgd" in line]
    assert set(numbers(out)) == {"bella-svgd"}
    assert not list(out.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    (tmp_path / "log").unlink()
    process = workers.start(TINY, out, tmp_path / "log", 0.0)
    process.join()
    assert process.exitcode == 0
    assert "bella-svgd" not in (tmp_path / "log").read_text()
    assert numbers(out) == undisturbed
    assert not leftovers(out)


def test_a_limit_on_file_sizes_fails_runs_and_not_the_suite(tmp_path: Path) -> None:
    """As a quota does: no tmpfs needed."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))"
    process = workers.start(TINY, tmp_path / "out", tmp_path / "log", 1000.0, limit)
    process.join()
    assert process.exitcode == 1
    lines = (tmp_path / "log").read_text().splitlines()
    assert any(line.startswith("failed: ") and "File too large" in line for line in lines), lines
    assert set(numbers(tmp_path / "out")) == {"bella-svgd"}


def write_suite(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(json.dumps({**TINY, **changes}))  # JSON is YAML
    return path


def test_a_loss_that_is_not_finite_fails_its_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = {"method": "ensemble", "settings": {"learning_rate": 1e30, "clip_norm": None, "prior_std": 1e-6}}
    suite = write_suite(tmp_path, methods=[wild, "bella-ensemble"])
    out = tmp_path / "out"
    trained = []
    real = runner.fit
    monkeypatch.setattr(runner, "fit", lambda *a, **k: trained.append(a) or real(*a, **k))
    assert bella(monkeypatch, "run", suite, "--out", out, "--checkpoint-every", 0) == 1
    captured = capsys.readouterr()
    assert "| bella-ensemble" in captured.out
    assert "1 of 2 runs failed" in captured.err
    assert "random-images / ensemble / seed 0: the training loss became" in captured.err
    failure = json.loads(next(out.rglob("failure.json")).read_text())
    assert "lower learning_rate" in failure["reason"]
    page = (out / "report.html").read_text()
    assert "1 runs failed" in page
    assert "the training loss became" in page
    assert len(trained) == 2
    assert bella(monkeypatch, "run", suite, "--out", out) == 1  # tries the failed one alone
    assert len(trained) == 3
    assert bella(monkeypatch, "run", suite, "--out", out, "--methods", "bella-ensemble") == 0


def test_data_that_vanish_fail_their_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (data / split / kind).mkdir(parents=True)
            for i in range(8):
                pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(data / split / kind / f"{i}.png")
    settings = {"data": str(data), "image_size": 16}
    suite = write_suite(
        tmp_path, problems=[{"problem": "imagefolder", "settings": settings}, *TINY["problems"]], methods=["bella-svgd"]
    )
    out, away = tmp_path / "out", tmp_path / "away"
    real = executors.run_here
    begun: list[object] = []

    def vanish(*args: Any) -> Any:
        begun.append(args)
        if len(begun) == 1:
            data.rename(away)
        return real(*args)

    monkeypatch.setitem(executors.EXECUTORS, "local", vanish)  # type: ignore[arg-type]
    assert bella(monkeypatch, "run", suite, "--out", out) == 1
    assert "imagefolder / bella-svgd / seed 0: " in capsys.readouterr().err
    assert len(list(out.rglob("record.json"))) == 1
    away.rename(data)
    assert bella(monkeypatch, "run", suite, "--out", out) == 0
    assert len(list(out.rglob("record.json"))) == 2
    assert not list(out.rglob("failure.json"))


def test_data_that_are_missing_from_the_start_fail_their_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = {"problem": "imagefolder", "settings": {"data": str(tmp_path / "nowhere"), "image_size": 16}}
    suite = write_suite(tmp_path, problems=[lacking, *TINY["problems"]], methods=["bella-svgd"])
    assert bella(monkeypatch, "run", suite, "--out", tmp_path / "out") == 1
    assert "imagefolder / bella-svgd / seed 0: no such folder" in capsys.readouterr().err
    assert len(list((tmp_path / "out").rglob("record.json"))) == 1
    suite = write_suite(tmp_path, problems=[lacking], methods=["bella-svgd"])
    assert bella(monkeypatch, "run", suite, "--out", tmp_path / "other") == 2
    assert not (tmp_path / "other").exists()


def test_a_finished_folder_can_be_shown_where_nothing_can_be_written(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    suite, out = write_suite(tmp_path, methods=["bella-svgd"]), small_disk / "out"
    assert bella(monkeypatch, "run", suite, "--out", out) == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    capsys.readouterr()
    assert bella(monkeypatch, "run", suite, "--out", out) == 2  # its tables cannot be written
    shown = capsys.readouterr()
    assert "bella-svgd" in shown.out
    assert "tables cannot be written" in shown.err
    assert bella(monkeypatch, "tables", out) == 0
    assert bella(monkeypatch, "run", suite, "--out", out, "--seeds", "0,1") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "choose another folder with --out" in line


def test_a_training_that_is_done_again_never_stands_beside_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Particles are gone and a task is added; the process dies when the new particles are stored and the record is not."""
    suite, out = write_suite(tmp_path, methods=["bella-svgd"]), tmp_path / "out"
    assert bella(monkeypatch, "run", suite, "--out", out) == 0
    record = next(out.rglob("record.json"))
    (record.parent / "particles.safetensors").unlink()
    suite = write_suite(tmp_path, methods=["bella-svgd"], tasks=["classification", {"task": "ood", "options": {"limit": 8}}])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_record", die)
        patch.setattr("sys.argv", ["bella", "run", str(suite), "--out", str(out)])
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            cli.main()
    assert (record.parent / "particles.safetensors").exists()
    assert not record.exists()
    assert bella(monkeypatch, "run", suite, "--out", out) == 0
    assert set(json.loads(record.read_text())["tasks"]) == {"classification", "ood"}


def test_too_little_gpu_memory_halves_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU is played by an allocator that refuses more than one particle at a time; results are those of chunks of one."""
    real = LowRankParticles.chunk_logits
    suite = write_suite(tmp_path, methods=["bella-svgd"])

    def refuse(self: LowRankParticles, prepared: Any, rows: slice) -> torch.Tensor:
        if rows.stop - rows.start > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, prepared, rows)

    assert bella(monkeypatch, "run", suite, "--out", tmp_path / "ones", "--set", "chunk_size=1") == 0
    monkeypatch.setattr(LowRankParticles, "chunk_logits", refuse)
    assert bella(monkeypatch, "run", suite, "--out", tmp_path / "out", "--set", "particles=2") == 0
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "out").rglob("record.json"))
    assert record["environment"]["chunk_size"] == 1
    assert numbers(tmp_path / "out") == numbers(tmp_path / "ones")


@pytest.mark.parametrize("where", ["chunk_logits", "__init__"])  # in a pass, or before there are any particles
def test_no_gpu_memory_for_one_particle_is_a_failure(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LowRankParticles, where, refuse)
    assert bella(monkeypatch, "run", write_suite(tmp_path, methods=["bella-svgd"]), "--out", tmp_path / "out") == 1
    assert "out of GPU memory with one particle at a time" in capsys.readouterr().err


def test_a_run_in_the_hands_of_another_process_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, out = write_suite(tmp_path), tmp_path / "out"
    assert bella(monkeypatch, "run", suite, "--out", out) == 0
    path = next(out.glob("runs/*/svgd/*/record.json"))
    content = path.read_bytes()
    path.unlink()
    lock = FileLock(path.parent / runner.LOCK)
    lock.acquire()

    def come_back(seconds: float) -> None:
        path.write_bytes(content)

    monkeypatch.setattr(executors.time, "sleep", come_back)
    monkeypatch.setattr(runner, "fit", lambda *a, **k: pytest.fail("trained what another process has in hand"))
    capsys.readouterr()
    assert bella(monkeypatch, "run", suite, "--out", out) == 0
    lock.release()
    assert "in the hands of another process" in capsys.readouterr().err


def test_a_dry_run_says_which_trainings_would_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite, out = write_suite(tmp_path, methods=["bella-svgd"]), tmp_path / "out"
    (run,) = make_plan(load_suite(str(suite)))
    monkeypatch.setenv("COLUMNS", "200")
    assert bella(monkeypatch, "run", suite, "--out", out, "--dry-run") == 0
    assert "go on training" not in capsys.readouterr().out
    (out / run.folder).mkdir(parents=True)
    (out / run.folder / CHECKPOINT).write_bytes(b"")
    assert bella(monkeypatch, "run", suite, "--out", out, "--dry-run") == 0
    assert "go on training, classification" in capsys.readouterr().out
