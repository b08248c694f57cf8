"""A training that is interrupted anywhere goes on to exactly the numbers of one that was not."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import Points, make_network, make_points
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.full_rank import FullRankParticles
from baselines.released_svgd import ReleasedSVGD
from bella import resume
from bella.checkpoint import load_tensors, save_tensors
from bella.errors import UserError
from bella.fit import Recipe, fit
from bella.inference import Inference
from bella.lowrank import LowRankParticles
from bella.particles import Particles
from bella.resume import CHECKPOINT, Checkpoints
from bella.svgd import SVGD

pytestmark = pytest.mark.filterwarnings("ignore:.*begins anew")
CPU = torch.device("cpu")
RECIPE = Recipe(epochs=3, batch_size=16, learning_rate=0.05)


@pytest.fixture(autouse=True)
def write_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "LARGEST_SHARE", float("inf"))


class Noisy(Inference):
    """Draws random numbers and remembers: what a checkpoint must not lose."""

    def __init__(self) -> None:
        self.momentum: list[Tensor] = []

    def transform(self, particles: Particles, training_size: int) -> None:
        gradients = [stored.grad for stored in particles.storage if stored.grad is not None]
        self.momentum = self.momentum or [torch.zeros_like(gradient) for gradient in gradients]
        for gradient, momentum in zip(gradients, self.momentum, strict=True):
            momentum.mul_(0.9).add_(gradient)
            gradient.copy_(momentum + 0.01 * random.random() * torch.randn_like(gradient))

    def state(self) -> dict[str, Tensor]:
        return {str(index): tensor for index, tensor in enumerate(self.momentum)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.momentum = [state[str(index)] for index in range(len(state))]


class Killed(Exception):  # noqa: N818
    """Stands for a kill: nothing after it is done."""


class Kill:
    """Raises at the given numbers of steps, counted over all attempts."""

    def __init__(self, *at: int) -> None:
        self.at = set(at)
        self.steps = 0

    def __call__(self, done: int, total: int, rate: float) -> None:
        self.steps += 1
        if self.steps in self.at:
            raise Killed


def full_rank() -> Particles:
    return FullRankParticles(make_network(), 3, head="4", seeds=1)


def low_rank() -> Particles:
    return LowRankParticles(make_network(), 3, targets=["2"], head="4", rank=2, seeds=1)


def attempt(make: Any, rule: Any, recipe: Recipe, folder: Path | None, kill: Kill, seconds: float = 0.0) -> tuple[Any, Any]:
    particles = make()
    checkpoints = None if folder is None else Checkpoints(folder, seconds)
    data = make_points(60, 1), make_points(30, 2)
    history = fit(particles, rule(), *data, recipe, seed=5, device=CPU, checkpoints=checkpoints, on_step=kill)
    told = asdict(history)
    for epoch in told["epochs"]:
        del epoch["seconds"]
    del told["train_seconds"]
    return [stored.detach().clone() for stored in particles.storage], told


def until_done(make: Any, rule: Any, recipe: Recipe, folder: Path, kill: Kill, seconds: float = 0.0) -> tuple[Any, Any]:
    while True:
        try:
            return attempt(make, rule, recipe, folder, kill, seconds)
        except Killed:
            assert len(list(folder.glob("best-*"))) <= 2
            assert len(list(folder.iterdir())) <= 3


@pytest.mark.parametrize("make", [full_rank, low_rank])
@pytest.mark.parametrize("rule", [SVGD, ReleasedSVGD, Noisy])
@pytest.mark.parametrize(
    "recipe", [RECIPE, replace(RECIPE, minibatches="per-particle"), replace(RECIPE, learning_rate=(0.05, 0.2, 0.01))]
)
def test_an_interrupted_training_ends_with_the_same_numbers(make: Any, rule: Any, recipe: Recipe, tmp_path: Path) -> None:
    expected, history = attempt(make, rule, recipe, None, Kill())
    kill = Kill(1, 3, 4, 6, 9, 10)
    found, resumed = until_done(make, rule, recipe, tmp_path, kill)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert resumed == history
    assert 12 < kill.steps <= 12 + len(kill.at)  # each attempt repeats at most the step it was killed in


def test_a_killed_training_repeats_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    """Without a checkpoint yet it begins anew, and leaves no more than that."""
    expected, history = attempt(low_rank, SVGD, RECIPE, None, Kill())
    kill = Kill(10)
    found, resumed = until_done(low_rank, SVGD, RECIPE, tmp_path, kill, seconds=1000.0)
    assert kill.steps == 22
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert resumed == history


def test_kept_features_are_those_of_the_undisturbed_training(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [
        Points(torch.rand(count, 3, 32, 32, generator=generator), torch.randint(3, (count,), generator=generator))
        for count in (30, 9)
    ]
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=0.01)

    def run(checkpoints: Checkpoints | None, kill: Kill) -> list[Tensor]:
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, depth=3)
        particles = LowRankParticles(model, 2, targets=["blocks.2.mlp.fc1"], rank=2, head="head", seeds=1)
        fit(particles, SVGD(), *data, recipe, seed=5, device=CPU, checkpoints=checkpoints, on_step=kill)
        return [stored.detach().clone() for stored in particles.storage]

    expected = run(None, Kill())
    kill = Kill(2, 7, 10)
    while True:
        try:
            found = run(Checkpoints(tmp_path, 0.0), kill)
            break
        except Killed:
            pass
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_a_loss_that_is_not_finite_is_never_a_checkpoint(tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=1e300, clip_norm=None, prior_std=1e-3)
    with pytest.raises(UserError, match="lower learning_rate"):
        attempt(full_rank, SVGD, recipe, tmp_path, Kill())
    assert not (tmp_path / CHECKPOINT).exists() or "nan" not in str(load_tensors(tmp_path / CHECKPOINT)["loss_sum"])


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    folder = tmp_path / "interrupted"
    folder.mkdir()
    with pytest.raises(Killed):
        attempt(low_rank, SVGD, RECIPE, folder, Kill(11))
    return folder


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_damaged_checkpoints_are_never_gone_on_from(interrupted: Path, tmp_path: Path, data: st.DataObject) -> None:
    """A bit flipped or an end cut off in any file of a checkpoint: the training begins anew, with the same end."""
    expected, history = attempt(low_rank, SVGD, RECIPE, None, Kill())
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    files = sorted(interrupted.iterdir())
    damaged = data.draw(st.sampled_from(files))
    for file in files:
        content = bytearray(file.read_bytes())
        if file == damaged and data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        elif file == damaged:
            bit = data.draw(st.integers(0, 8 * len(content) - 1))
            content[bit // 8] ^= 1 << bit % 8
        (folder / file.name).write_bytes(content)
    found, resumed = attempt(low_rank, SVGD, RECIPE, folder, Kill())
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert resumed == history


def test_the_checksum_covers_names_types_shapes_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors({"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.5), "c": torch.zeros(0, dtype=torch.bfloat16)}, path)
    content = path.read_bytes()
    assert load_tensors(path)["b"] == 1.5
    header_length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_length])
    for change in ({"shape": [3, 2]}, {"dtype": "I32"}):
        changed = {**header, "a": {**header["a"], **change}}
        text = json.dumps(changed, separators=(",", ":")).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + header_length :])
        with pytest.raises(UserError, match="checksum"):
            load_tensors(path)
