"""What a suite would cost: exact counts, estimates against measurements, dry runs without data, weights or network."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from bella.fit import loss_and_gradients
from benchmarks import estimate
from benchmarks.backbones import build_classifier
from benchmarks.cli import app
from benchmarks.isolated import call_isolated
from benchmarks.methods import Method
from benchmarks.plan import Run, make_plan
from benchmarks.publish import publish
from benchmarks.registries import METHODS
from benchmarks.suite import Suite, load_suite

SETTINGS = {"backbone": "timm:vit_tiny_patch16_224?random", "particles": 3, "batch_size": 16, "image_size": 96}


def planned(method: str, **settings: object) -> Run:
    suite = {"name": "s", "methods": [method], "problems": ["random-images"], "tasks": ["classification"]}
    return make_plan(Suite.model_validate({**suite, "settings": {**SETTINGS, **settings}}))[0]


@pytest.mark.parametrize("method", ["ensemble", "bella-svgd"])
def test_counts_and_operations_are_those_of_real_particles(method: str) -> None:
    run = planned(method)
    found = estimate.estimate(run, half_precision=False)
    model = build_classifier(run.backbone, class_names=[str(i) for i in range(10)], image_size=96, head="trained", templates=())
    made: Method = METHODS.resolve(method)
    particles = made.particles(model, 3, head="head", seeds=0, chunk_size=None, **run.particle_options)
    assert found.counts.trainable_parameters == particles.trainable_parameters
    assert found.counts.stored_bytes == 4 * particles.trainable_parameters
    images, targets = torch.rand(16, 3, 96, 96), torch.zeros(3, 16, dtype=torch.int64)
    particles.zero_gradients()
    loss_and_gradients(particles, particles.prepare(images), targets)  # finds the fan-out
    with FlopCounterMode(display=False) as counter:
        loss_and_gradients(particles, particles.prepare(images), targets)
    # The estimate repeats the whole input, real particles what comes behind the patches and the first attention; and the
    # operations of fused attention are counted by another rule than those of its parts.
    assert 0.98 * counter.get_total_flops() <= found.step_operations <= 1.1 * counter.get_total_flops()


@pytest.mark.parametrize(("method", "settings"), [("ensemble", {}), ("bella-svgd", {}), ("bella-svgd", {"chunk_size": 1})])
def test_memory_estimates_grow_as_what_is_measured(method: str, settings: dict[str, int]) -> None:
    """With the batch: what a first product brings in, code and work space, differs from processor to processor and does not grow.

    Estimates count what is saved for the backward pass, not what lives for a moment within it (a quarter to a half more, here).
    """
    runs = [planned(method, batch_size=size, **settings) for size in (8, 40)]
    found = [estimate.estimate(run, half_precision=False).memory_bytes for run in runs]
    seen = [call_isolated(estimate.measure, run, "cpu", 1) for run in runs]
    growth = (seen[1].memory_bytes - seen[0].memory_bytes) / (found[1] - found[0])
    assert 0.8 < growth < 2
    assert all(own.memory_bytes > 0.7 * expected for own, expected in zip(seen, found, strict=True))
    assert all(own.step_seconds > 0 for own in seen)


def test_chunks_save_memory_and_nothing_else() -> None:
    whole, chunked = (estimate.estimate(planned("bella-svgd", chunk_size=size), half_precision=False) for size in (None, 1))
    assert chunked.memory_bytes < 0.6 * whole.memory_bytes
    assert chunked.counts == whole.counts


def test_costs_of_a_suite_are_written_and_published(tmp_path: Path) -> None:
    file = tmp_path / "costs-test.yaml"
    file.write_text(
        "methods: [single, bella-svgd]\nproblems: [random-images]\ntasks: [classification]\n"
        "settings: {backbone: 'timm:vit_tiny_patch16_224?random', particles: 2, batch_size: 2, image_size: 32}\n"
    )
    out = tmp_path / "out"
    shown = CliRunner().invoke(app, ["costs", str(file), "--measure", "--out", str(out), "--json"])
    assert shown.exit_code == 0, shown.output
    rows = json.loads(shown.stdout)["rows"]
    assert [(row["method"], row["memory"], row["step"]) for row in rows] == [
        ("single", "measured", "measured"),
        ("bella-svgd", "measured", "measured"),
    ]
    published = publish(out, tmp_path / "results")
    assert {p.name for p in published.iterdir()} == {"costs.json", "costs.md", "suite.yaml"}
    assert "| bella-svgd | 2 | 4 |" in (published / "costs.md").read_text()
    estimated = CliRunner().invoke(app, ["costs", str(file), "--measure", "--longest", "0", "--json"])
    assert {row["memory"] for row in json.loads(estimated.stdout)["rows"]} == {"estimated"}


def test_an_interrupted_call_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "costs-test.yaml"
    file.write_text(
        "methods: [single, bella-single, bella-svgd]\nproblems: [random-images]\ntasks: [classification]\n"
        "settings: {backbone: 'timm:vit_tiny_patch16_224?random', particles: 2, batch_size: 2, image_size: 32}\n"
    )
    asked: list[str] = []
    real = estimate.estimate

    def counted(run: Run, *, half_precision: bool) -> estimate.Estimate:
        asked.append(run.label)
        if asked == ["single", "bella-single"]:
            raise KeyboardInterrupt
        return real(run, half_precision=half_precision)

    monkeypatch.setattr(estimate, "estimate", counted)
    arguments = ["costs", str(file), "--out", str(tmp_path / "out"), "--json"]
    assert CliRunner().invoke(app, arguments).exit_code != 0
    left = json.loads((tmp_path / "out" / "costs.json").read_text())
    assert [row["method"] for row in left["rows"]] == ["single"]
    again = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert asked == ["single", "bella-single", "bella-single", "bella-svgd"]
    assert again["rows"][0] == left["rows"][0]
    assert again["product_rate"] == left["product_rate"]
    (tmp_path / "out" / "costs.json").write_text("{")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert asked[4:] == ["single", "bella-single", "bella-svgd"]


@pytest.mark.parametrize("suite", ["sweep-particles", "sweep-repulsion", "paper-costs"])
def test_every_suite_that_is_listed_can_be_planned(suite: str) -> None:
    runs = make_plan(load_suite(suite), {}, complete=False)
    assert len({run.folder for run in runs}) == len(runs) > 10


@pytest.mark.parametrize("suite", ["paper-cifar", "paper-camelyon", "paper-domainnet", "paper-imagenet", "paper-vqa", "sweep-rank"])
def test_dry_runs_say_what_is_missing_without_a_network(suite: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a dry run opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("BELLA_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    shown = CliRunner().invoke(app, ["run", suite, "--seeds", "0", "--dry-run", "--out", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert " runs; memory is estimated" in shown.stdout
    missing = [line for line in shown.stdout.splitlines() if line.startswith("missing: ")]
    assert any("fetched from the hub" in line for line in missing)
    assert any(str(tmp_path) in line for line in missing)  # where the data are looked for
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["ensemble", "bella-svgd", "swag", "bella-variational"])
@pytest.mark.parametrize("problem", ["digits", "easy-vqa"])
def test_embedded_backbones_are_estimated_from_shapes(problem: str, method: str) -> None:
    pytest.importorskip("easy_vqa")
    suite = {"name": "s", "methods": [method], "problems": [problem], "tasks": ["classification"], "settings": {"particles": 3}}
    (run,) = make_plan(Suite.model_validate(suite))
    found = estimate.estimate(run, half_precision=False)
    one = estimate.estimate(make_plan(Suite.model_validate({**suite, "settings": {"particles": 1}}))[0], half_precision=False)
    shared = method in ("swag", "bella-variational")
    assert found.counts.trainable_parameters == (1 if shared else 3) * one.counts.trainable_parameters
    assert found.counts.stored_bytes == (3 if method != "bella-variational" else 1) * one.counts.stored_bytes
