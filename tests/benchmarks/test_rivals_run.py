"""Every further method the whole way: trained, stored, read again, evaluated, its costs counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import bella
from safetensors.torch import load_file

from bella.errors import UserError
from benchmarks.plan import make_plan
from benchmarks.registries import METHODS
from benchmarks.suite import load_suite, narrow

pytest.importorskip("sklearn")
pytest.importorskip("laplace")

RIVALS = [entry.method for entry in load_suite("rivals").methods if entry.method not in ("ensemble", "svgd")]
TINY = {"particles": 2, "epochs": 2, "backbone": "timm:mobilenetv3_small_050?random"}


def run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, problem: dict[str, Any], tasks: list[str], **settings: Any
) -> dict[str, Any]:
    suite = folder / "rivals-test.yaml"
    content = {"methods": RIVALS, "problems": [problem], "tasks": tasks, "settings": settings}
    suite.write_text(yaml.safe_dump(content))
    assert bella(monkeypatch, "run", suite, "--out", folder / "out") == 0
    paths = (folder / "out").glob("runs/*/*/*/record.json")
    return {record["run"]["label"]: (record, path.parent) for path in paths if (record := json.loads(path.read_text()))}


def check(found: dict[str, Any], particles: int) -> None:
    assert sorted(found) == sorted(RIVALS)
    for label, (record, folder) in found.items():
        stored = load_file(folder / "particles.safetensors")
        assert record["costs"]["stored_bytes"] == sum(t.numel() * t.element_size() for t in stored.values()), label
        for path in (folder / "logits").glob("*.safetensors"):
            logits = load_file(path)["logits"]
            assert logits.shape[0] == particles
            assert bool(logits.isfinite().all()), label
        assert record["costs"]["train_seconds"] > 0


def test_on_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = {"problem": "digits", "settings": {"train_limit": 64, "image_size": 32}}
    found = run(monkeypatch, tmp_path, problem, ["classification"], **TINY)
    check(found, 2)
    costs = {label: record["costs"] for label, (record, _) in found.items()}
    one = costs["mc-dropout"]["trainable_parameters"]
    assert costs["swag"]["trainable_parameters"] == one == costs["laplace-last-layer"]["trainable_parameters"]
    assert costs["multi-swag"]["trainable_parameters"] == 2 * one  # three trajectories, one a particle at most
    assert costs["mc-dropout"]["stored_bytes"] == 4 * one
    assert costs["swag"]["stored_bytes"] == 2 * 4 * one
    assert one < costs["batch-ensemble"]["trainable_parameters"] < 1.5 * one
    assert costs["bella-laplace"]["trainable_parameters"] * 2 == costs["bella-svgd"]["trainable_parameters"]
    assert found["bella-laplace"][0]["training"]["inference"]["prior_precision"] > 0
    before = {label: record["tasks"] for label, (record, _) in found.items()}
    for _, folder in found.values():  # evaluated from particles that were read
        for path in (folder / "logits").glob("*.safetensors"):
            path.unlink()
        record = json.loads((folder / "record.json").read_text())
        record |= {"tasks": {}, "task_results": {}}
        record.pop("checksum")
        (folder / "record.json").write_text(json.dumps(record))
    again = run(monkeypatch, tmp_path, problem, ["classification"], **TINY)
    for label, (record, _) in again.items():
        assert record["tasks"] == before[label], label


@pytest.mark.slow
def test_on_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("easy_vqa")
    settings = {"train_limit": 60, "test_limit": 40, "image_size": 32, "epochs": 2}
    check(run(monkeypatch, tmp_path, {"problem": "easy-vqa", "settings": settings}, ["vqa"], particles=2), 2)


STUDY = [f"cifar10{name}" for name in ("", "-128", "-near", "-tuning", "-development", "-sweeps", "-early")]


def test_every_suite_of_the_study_can_be_planned() -> None:
    for name in STUDY:
        runs = make_plan(load_suite(name), {}, complete=False)
        assert all(run.missing is not None and "data=FOLDER" in run.missing for run in runs)
    asked = {run.method for run in make_plan(narrow(load_suite("cifar10"), None, None, [0]), {}, complete=False)}
    assert asked == set(METHODS.names())
    with pytest.raises(UserError, match=r"no such file: out/cifar10-early/networks/particle0\.safetensors"):
        make_plan(load_suite("cifar10-theta0"), {}, complete=False)
