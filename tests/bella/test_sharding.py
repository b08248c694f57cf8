"""Particles over several processes (gloo): the numbers of one process, and checkpoints that any number of processes takes up."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import shards
import torch

from baselines.released_svgd import ReleasedSVGD
from bella import resume
from bella.errors import UserError
from bella.inference import Independent
from bella.particles import Shard
from bella.sharding import split
from bella.svgd import SVGD

RULES = {
    "independent": Independent,
    "svgd": partial(SVGD, repulsion=0.1),
    "products": partial(SVGD, repulsion=0.1, kernel="products"),
    "released": partial(ReleasedSVGD, skip_probability=0.3, bandwidth=1.0),
}


def agree(found: Any, expected: list[torch.Tensor], tolerance: float) -> None:
    assert not isinstance(found, str), found
    for ours, theirs in zip(found, expected, strict=True):
        ours = torch.tensor(ours, dtype=theirs.dtype)
        assert ours.shape == theirs.shape
        assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("kind", shards.KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_three_steps_in_float64_equal_one_process(rule: str, kind: str, size: int, tmp_path: Path) -> None:
    """Five particles: no process count divides them."""
    if rule == "products" and kind == "full-rank":
        pytest.skip("has no products")
    expected, history = shards.train(kind, RULES[rule], 5, {})
    found, told = shards.train_on(size, tmp_path, kind, RULES[rule], 5, {})
    agree(found, expected, 1e-10)
    assert told[0]["training_nll"] == pytest.approx(history[0]["training_nll"], rel=1e-10)
    assert told[0]["validation_nll"] == pytest.approx(history[0]["validation_nll"], rel=1e-10)


@pytest.mark.parametrize("size", [2, 4])
def test_one_step_in_float32_equals_one_process_to_rounding(size: int, tmp_path: Path) -> None:
    options = {"dtype": torch.float32, "recipe": {"batch_size": 24}}
    expected, _ = shards.train("low-rank", RULES["svgd"], 5, options)
    found, _ = shards.train_on(size, tmp_path, "low-rank", RULES["svgd"], 5, options)
    agree(found, expected, 1e-5)


@pytest.mark.parametrize("recipe", [{"minibatches": "per-particle"}, {"learning_rate": (0.05, 0.2, 0.01)}])
def test_what_each_particle_has_of_its_own(recipe: dict[str, Any], tmp_path: Path) -> None:
    options = {"recipe": {"epochs": 2, **recipe}}
    expected, _ = shards.train("low-rank", RULES["svgd"], 3, options)
    found, _ = shards.train_on(2, tmp_path, "low-rank", RULES["svgd"], 3, options)
    agree(found, expected, 1e-10)


@pytest.mark.parametrize(("first", "second"), [(2, 4), (4, 1), (1, 2)])
@pytest.mark.parametrize("recipe", [{}, {"learning_rate": (0.05, 0.2, 0.01, 0.03)}])
def test_a_checkpoint_is_taken_up_by_any_number_of_processes(
    first: int, second: int, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "LARGEST_SHARE", float("inf"))
    rule = RULES["released"]  # remembers
    options: dict[str, Any] = {"recipe": {"epochs": 3, **recipe}}
    expected, history = shards.train("low-rank", rule, 4, options)
    folder, meetings = tmp_path / "run", tmp_path / "meetings"
    folder.mkdir()
    meetings.mkdir()

    def go(size: int, **more: Any) -> tuple[Any, Any]:
        own = {**options, "folder": str(folder), **more}
        return shards.train("low-rank", rule, 4, own) if size == 1 else shards.train_on(size, meetings, "low-rank", rule, 4, own)

    if first == 1:
        with pytest.raises(shards.StoppedError):
            go(1, stop=8)
    else:
        assert "StoppedError" in go(first, stop=8)[0]
    assert (folder / resume.CHECKPOINT).exists()
    found, told = go(second)
    agree([t.tolist() if isinstance(t, torch.Tensor) else t for t in found], expected, 1e-10)
    for ours, theirs in zip(told, history, strict=True):
        assert ours["training_nll"] == pytest.approx(theirs["training_nll"], rel=1e-10)


def test_more_processes_than_particles_are_refused(tmp_path: Path) -> None:
    found, _ = shards.train_on(4, tmp_path, "low-rank", RULES["svgd"], 3, {})
    assert "3 particles over 4 processes" in found
    assert UserError.__name__ in found


def test_one_process_has_all() -> None:
    shard = split(7)
    assert shard == Shard.whole(7)
    own = torch.rand(7, 2)
    assert shard.gather(own) is own
    assert shard.leads
