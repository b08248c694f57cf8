"""The README's examples, run as they stand there: a package with entry points, found by the command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def plugin(tmp_path: Path) -> dict[str, str]:
    """The examples as an installed package; returns the environment in which it is."""
    for code in blocks("python"):
        first = re.match(r"# (my_package/\w+\.py)\n", code)
        assert first is not None
        file = tmp_path / first[1]
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    (tmp_path / "my_package" / "__init__.py").touch()
    entry_points: list[str] = []
    for text in blocks("toml"):
        groups: dict[str, Any] = tomllib.loads(text)["project"]["entry-points"]
        for group, names in groups.items():
            entry_points += [f"[{group}]", *(f"{name} = {target}" for name, target in names.items())]
    installed = tmp_path / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("\n".join(entry_points) + "\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def bella(*words: str, env: dict[str, str], cwd: Path) -> str:
    command = [sys.executable, "-m", "benchmarks.cli", *words]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_examples_run(plugin: dict[str, str], tmp_path: Path) -> None:
    listed = json.loads(bella("list", "--json", env=plugin, cwd=tmp_path))
    assert "bella-strong" in [entry["name"] for entry in listed["methods"]]
    assert "noise" in [entry["name"] for entry in listed["problems"]]
    assert "confidence" in [entry["name"] for entry in listed["tasks"]]
    (tmp_path / "s.yaml").write_text(
        "methods: [bella-single, bella-strong]\nproblems: [noise]\ntasks: [classification, confidence]\nsettings: {particles: 2}\n"
    )
    printed = bella("run", "s.yaml", env=plugin, cwd=tmp_path)
    assert "### noise: Classification" in printed
    assert "### noise: Confidence" in printed
    report = (tmp_path / "out" / "s" / "report.html").read_text()
    assert all(name in report for name in ("noise: Confidence", "bella-strong", "noise: reliability"))
    assert "| bella-strong" in printed
    record = json.loads(next(tmp_path.glob("out/s/runs/noise/bella-strong/*/record.json")).read_text())
    assert record["training"]["inference"]["gamma"] == 1.0


def test_the_suite_examples_are_suites(tmp_path: Path) -> None:
    from benchmarks.plan import make_plan
    from benchmarks.suite import load_suite

    tasks, images = blocks("yaml")
    (tmp_path / "tasks.yaml").write_text(tasks)
    runs = make_plan(load_suite(str(tmp_path / "tasks.yaml")))
    assert {(run.problem, task.name) for run in runs for task in run.tasks} == {
        ("digits", "ood"),
        ("digits", "adversarial"),
        ("easy-vqa", "vqa"),
    }
    (tmp_path / "mine.yaml").write_text(images)
    assert load_suite(str(tmp_path / "mine.yaml")).problems[0].settings["image_size"] == 64


def test_the_table_is_the_published_one() -> None:
    published = (Path(__file__).parent.parent / "results" / "quick" / "tables.md").read_text().splitlines()
    shown = [line for line in README.splitlines() if re.match(r"\| (single|ensemble|svgd|bella-\S+) +\|", line)]
    assert len(shown) == 6
    assert all(line in published for line in shown)


def test_the_tables_of_the_scaling_page_are_the_measured_ones() -> None:
    from benchmarks.scaling import scaling_lines

    root = Path(__file__).parent.parent
    page = (root / "docs" / "scaling.md").read_text()
    measured = [json.loads(path.read_text()) for path in sorted((root / "results" / "speed").glob("scaling-*.json"))]
    assert len(measured) == 2
    for found in measured:
        assert found["command"] in page
        assert "\n".join(scaling_lines(found)) in page
