"""The whole way, as a user goes it: run, run again, tables, publish, and every mistake on one line."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import bella
from safetensors.torch import load_file, save_file

from benchmarks import registries, runner
from benchmarks.options import Options
from benchmarks.task import Column, Posterior, Task

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke suite, run once."""
    out = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as patch:
        assert bella(patch, "run", "smoke", "--out", out) == 0
    return out


@pytest.fixture
def copy(smoke: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(smoke, tmp_path / "out"))


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {str(p.relative_to(out)): json.loads(p.read_text()) for p in sorted(out.glob("runs/*/*/*/record.json"))}


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def test_records_hold_what_the_design_lists(smoke: Path) -> None:
    found = records(smoke)
    assert [r["run"]["method"] for r in found.values()] == sorted(
        ["single", "ensemble", "svgd", "bella-single", "bella-ensemble", "bella-svgd"]
    )
    for path, record in found.items():
        assert record["schema"] == 1
        tensors = load_file(smoke / Path(path).with_name("particles.safetensors"))
        costs = record["costs"]
        assert costs["stored_bytes"] == sum(t.numel() * t.element_size() for t in tensors.values())
        assert costs["trainable_parameters"] == costs["trainable_parameters_per_particle"] * record["run"]["config"]["particles"]
        assert costs["peak_memory_bytes"] > 10**8
        logits = load_file(smoke / Path(path).parent / "logits" / "test.safetensors")
        assert logits["logits"].shape == (record["run"]["config"]["particles"], len(logits["targets"]), 8)
        classes = logits["logits"].softmax(-1).mean(0).argmax(-1)
        assert record["tasks"]["classification"]["accuracy"] == pytest.approx(float((classes == logits["targets"]).double().mean()))
    inference = next(r for p, r in found.items() if "/bella-svgd/" in p)["training"]["inference"]
    assert inference["gamma"] * 96 == pytest.approx(inference["temperature"]) == pytest.approx(1.0)


def test_a_second_run_changes_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(copy)
    monkeypatch.setattr(runner, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert bella(monkeypatch, "run", "smoke", "--out", copy) == 0
    assert content(copy) == before


def test_two_runs_give_the_same_numbers_to_the_last_digit(smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bella(monkeypatch, "run", "smoke", "--out", tmp_path, "--methods", "svgd,bella-svgd") == 0
    first = records(smoke)
    for path, record in records(tmp_path).items():
        assert record["tasks"] == first[path]["tasks"]
        ours, theirs = (load_file(out / Path(path).with_name("particles.safetensors")) for out in (tmp_path, smoke))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_missing_task_is_evaluated_from_the_stored_particles(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = records(copy)
    for path, record in expected.items():
        changed = json.loads(json.dumps(record)) | {"tasks": {}, "task_results": {}, "checksum": None}
        (copy / path).write_text(json.dumps(changed))
        shutil.rmtree((copy / path).parent / "logits")
    monkeypatch.setattr(runner, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert bella(monkeypatch, "run", "smoke", "--out", copy) == 0
    assert {p: r["tasks"] for p, r in records(copy).items()} == {p: r["tasks"] for p, r in expected.items()}


def test_one_training_serves_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = []
    fit = runner.fit
    monkeypatch.setattr(runner, "fit", lambda *a, **k: trainings.append(1) or fit(*a, **k))
    words = ("run", "smoke", "--methods", "bella-single", "--out", tmp_path)
    assert bella(monkeypatch, *words, "--tasks", "classification") == 0
    assert bella(monkeypatch, *words) == 0  # adds the other tasks
    (record,) = records(tmp_path).values()
    assert set(record["tasks"]) == {"classification", "ood", "corruption", "adversarial"}
    assert len(trainings) == 1


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


def test_damaged_files_are_named_and_the_rest_is_left(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(copy.glob("runs/*/svgd/*/record.json"))
    path.write_text(path.read_text()[:200])
    before = content(copy)
    for command in (["run", "smoke", "--out", copy], ["tables", copy], ["publish", copy, "--to", copy.parent / "results"]):
        capsys.readouterr()
        assert bella(monkeypatch, *command) == 2
        line = one_line(capsys)
        assert str(path) in line
        assert "remove its folder" in line
    assert content(copy) == before


def test_particles_of_another_architecture_are_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(copy.glob("runs/*/bella-svgd/*/record.json"))
    record = json.loads(path.read_text()) | {"tasks": {}, "task_results": {}, "checksum": None}
    path.write_text(json.dumps(record))
    shutil.rmtree(path.parent / "logits")
    particles = path.with_name("particles.safetensors")
    save_file({name: t[..., :1].contiguous() for name, t in load_file(particles).items()}, particles)
    assert bella(monkeypatch, "run", "smoke", "--out", copy, "--methods", "bella-svgd") == 1
    assert "holds particles of another architecture" in capsys.readouterr().err


def test_publishing_takes_records_tables_and_figures_only(smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    for _ in range(2):  # a second time replaces the first
        assert bella(monkeypatch, "publish", smoke, "--to", results) == 0
    names = {p.name for p in results.rglob("*") if p.is_file() and p.parent.name != "figures"}
    assert names == {"record.json", "suite.yaml", "tables.md", "tables.tex", "tables.csv"}
    assert {p.name for p in results.glob("smoke/figures/*")} == {p.name for p in smoke.glob("figures/*")} != set()
    assert [p.name for p in results.iterdir()] == ["smoke"]
    assert (results / "smoke" / "tables.md").read_text() == (smoke / "tables.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "smoke", "--methods", "svdg"], "unknown method 'svdg': did you mean 'svgd'?"),
        (["run", "smoke", "--set", "epoch=3"], "unknown setting 'epoch': did you mean 'epochs'?"),
        (["run", "smoke", "--set", "epochs=three"], "epochs is 'three'"),
        (["run", "smoke", "--seeds", "a"], "--seeds a: whole numbers"),
        (["run", "smoke", "--device", "gpu"], "--device gpu: one of auto, cpu, cuda"),
        (["run", "no-such.yaml"], "no such suite file"),
        (["tables", "/no/such/folder"], "/no/such/folder: no such folder"),
        (["tables", "/tmp", "--format", "html"], "unknown format 'html'"),
        (["list", "method"], "did you mean 'methods'?"),
        (["costs", "open_clip:ViT-B-33"], "did you mean"),
        (["costs", "timm:resnet18", "--targets", "cnv1"], "did you mean 'conv1'?"),
    ],
)
def test_mistakes_are_one_line_with_the_way_out(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bella(monkeypatch, *words) == 2
    line = one_line(capsys)
    assert line.startswith("bella: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_costs_of_the_released_set_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["costs", "open_clip:ViT-B-32", "--rank", "1,2,3,4,8,16", "--targets", "c_fc,c_proj", "--json"]
    assert bella(monkeypatch, *words) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["full_rank"]["total_parameters"] == 87_849_216
    for row in found["low_rank"]:
        assert row["trainable_parameters_per_particle"] == 92_160 * row["rank"]
        assert row["stored_bytes"] == 5 * 4 * 92_160 * row["rank"]
    assert bella(monkeypatch, *words[:3], "4", *words[4:6]) == 0
    text = capsys.readouterr().out
    assert "368,640" in text
    assert "0.42%" in text


@pytest.mark.parametrize("words", [["list"], ["list", "tasks"], ["doctor"]])
def test_json_is_one_object(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert bella(monkeypatch, *words, "--json") == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


class Confidence(Task):
    """A task of another package."""

    options = Options
    tables = {"Confidence": (Column("confidence", "Confidence (%)", None, 100, 1),)}  # noqa: RUF012
    caption = "Mean probability of the predicted class"

    def evaluate(self, posterior: Posterior, options: Any) -> dict[str, float | None]:
        logits = posterior.predictions("unseen-digits").logits
        return {"confidence": float(logits.softmax(-1).mean(0).max(-1).values.mean())}


def test_a_task_and_a_method_of_another_package_run_and_show(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Point:
        dist = None

        def __init__(self, name: str, value: str) -> None:
            self.name, self.value, self.module = name, value, value.partition(":")[0]

    monkeypatch.setattr("benchmarks.methods.PLUGGED", __import__("benchmarks.methods").methods.BELLA_SVGD, raising=False)
    monkeypatch.setattr("benchmarks.tasks.PLUGGED", Confidence, raising=False)
    points = {
        "bella.tasks": [Point("confidence", "benchmarks.tasks:PLUGGED")],
        "bella.methods": [Point("mine", "benchmarks.methods:PLUGGED")],
    }
    monkeypatch.setattr(metadata, "entry_points", lambda group: points.get(group, []))
    for registry in registries.ALL.values():
        monkeypatch.setattr(registry, "_entries", None)
    assert bella(monkeypatch, "list") == 0
    assert "confidence" in capsys.readouterr().out
    words = ["run", "smoke", "--methods", "single,mine", "--tasks", "classification,confidence", "--out", copy]
    trained: list[object] = []
    real = runner.fit
    monkeypatch.setattr(runner, "fit", lambda *a, **k: trained.append(a) or real(*a, **k))
    assert bella(monkeypatch, *words) == 0
    assert len(trained) == 1  # the new method; the other's new task needs no training
    assert bella(monkeypatch, "tables", copy) == 0
    printed = capsys.readouterr().out
    assert "Confidence (%)" in printed
    assert "| mine" in printed

    # The plugin breaks: it is named, and the rest is shown.
    broken = [Point("confidence", "benchmarks.no_such_module:PLUGGED")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: broken if group == "bella.tasks" else [])
    for registry in registries.ALL.values():
        monkeypatch.setattr(registry, "_entries", None)
    with pytest.warns(UserWarning, match=r"task 'confidence' .* cannot be loaded: .*: its results are left out"):
        assert bella(monkeypatch, "report", copy) == 0
    # A suite that asks for it goes on without it.
    with pytest.warns(UserWarning, match=r"task 'confidence' .*: it is left out"):
        assert bella(monkeypatch, *words[:2], "--methods", "single", "--tasks", "classification,confidence", "--out", copy) == 0
    page = (copy / "report.html").read_text()
    assert "Accuracy" in page or "Acc." in page
    assert "Confidence (%)" not in page
