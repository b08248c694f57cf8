"""Model averaging, uncertainty, temperature, diversity, checkpoints, costs and the registry."""

from __future__ import annotations

import mmap
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from conftest import make_network
from hypothesis import given, settings
from hypothesis import strategies as st

from bella import diversity, predictive
from bella.checkpoint import load_particles, save_particles
from bella.costs import count_costs, peak_memory
from bella.errors import UserError
from bella.lowrank import LowRankParticles
from bella.registry import Registry


def random_logits(n: int = 4, count: int = 50, classes: int = 6) -> torch.Tensor:
    return 3 * torch.randn(n, count, classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_averages_and_uncertainties_equal_numpy() -> None:
    logits = random_logits()
    p = scipy.special.softmax(logits.numpy(), -1)
    mean = p.mean(0)
    assert np.allclose(predictive.log_predictive(logits), np.log(mean))
    by_logits = scipy.special.log_softmax(logits.numpy().mean(0), -1)
    assert np.allclose(predictive.log_predictive(logits, "logits"), by_logits)
    total = scipy.stats.entropy(mean, axis=-1)
    expected = scipy.stats.entropy(p, axis=-1).mean(0)
    assert np.allclose(predictive.total_uncertainty(logits), total)
    assert np.allclose(predictive.aleatoric_uncertainty(logits), expected)
    assert np.allclose(predictive.epistemic_uncertainty(logits), total - expected)
    with pytest.raises(UserError, match="did you mean 'logits'"):
        predictive.log_predictive(logits, "logit")


def test_certain_predictions_have_no_entropy() -> None:
    logits = torch.tensor([[[1e4, 0.0, 0.0]], [[0.0, 1e4, 0.0]]])
    assert float(predictive.total_uncertainty(logits)) == pytest.approx(np.log(2))
    assert float(predictive.aleatoric_uncertainty(logits)) == 0.0
    assert bool(torch.isfinite(predictive.log_mean_probabilities(logits)[:, :2]).all())


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_minimises_the_nll(scale: float) -> None:
    log_p = predictive.log_predictive(random_logits(1, 400) * scale)
    targets = torch.distributions.Categorical(logits=log_p / scale).sample()

    def nll(log_t: float) -> float:
        z = scipy.special.log_softmax(log_p.numpy() / np.exp(log_t), -1)
        return float(-z[np.arange(400), targets].mean())

    best = scipy.optimize.minimize_scalar(nll, bounds=(-4, 4), method="bounded", options={"xatol": 1e-9})
    assert predictive.fit_temperature(log_p, targets) == pytest.approx(np.exp(best.x), rel=1e-3)


def test_temperature_of_extremes_is_finite() -> None:
    certain = torch.log(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert predictive.fit_temperature(certain, torch.tensor([0, 1])) == pytest.approx(0.01)
    assert predictive.fit_temperature(certain, torch.tensor([1, 0])) == pytest.approx(100.0)


def test_diversity_equals_numpy() -> None:
    logits = random_logits(3)
    p, classes = scipy.special.softmax(logits.numpy(), -1), logits.numpy().argmax(-1)
    for i in range(3):
        for j in range(3):
            assert float(diversity.disagreement(logits)[i, j]) == pytest.approx((classes[i] != classes[j]).mean())
            variation = np.abs(p[i] - p[j]).sum(-1).mean() / 2
            assert float(diversity.function_distances(logits)[i, j]) == pytest.approx(variation)
    matrix = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    assert diversity.mean_off_diagonal(matrix) == 2.0
    assert diversity.mean_off_diagonal(torch.zeros(1, 1)) is None


def low_rank(rank: int = 2) -> LowRankParticles:
    return LowRankParticles(make_network(), 3, targets=["0"], head="4", rank=rank, initial_b_std=0.1)


def test_particles_come_back_from_disk(tmp_path: Path) -> None:
    particles, path = low_rank(), tmp_path / "particles.safetensors"
    save_particles(particles, path)
    before = particles.storage[0].detach().clone()
    particles.storage[0].data.zero_()
    load_particles(particles, path)
    assert torch.equal(particles.storage[0], before)
    assert [p.name for p in tmp_path.iterdir()] == ["particles.safetensors"]


def test_another_architecture_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    save_particles(low_rank(rank=3), tmp_path / "p.safetensors")
    particles = low_rank()
    before = particles.storage[0].detach().clone()
    with pytest.raises(UserError, match=r"another architecture: 0\.A"):
        load_particles(particles, tmp_path / "p.safetensors")
    assert torch.equal(particles.storage[0], before)


@given(cut=st.integers(0, 1000), flip=st.none() | st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_damaged_files_are_one_clear_error(tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int | None) -> None:
    path = tmp_path_factory.mktemp("damaged") / "p.safetensors"
    save_particles(low_rank(), path)
    content = bytearray(path.read_bytes())
    if flip is not None:
        content[flip] ^= 0xFF
    else:
        content = content[: min(cut, len(content) - 1)]
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"p\.safetensors"):
        load_particles(low_rank(), path)


def test_costs_count_and_measure() -> None:
    costs = count_costs(total_parameters=1000, base_bytes=4000, trainable_parameters=50, num_particles=5)
    assert (costs.trainable_parameters, costs.ratio, costs.stored_bytes) == (50, 0.01, 200)
    with peak_memory(torch.device("cpu")) as before:
        pass
    # New pages, whatever earlier tests have left to the allocator.
    with peak_memory(torch.device("cpu")) as peak, mmap.mmap(-1, 300 * 2**20) as block:
        torch.frombuffer(block, dtype=torch.uint8).fill_(1)
    assert peak.bytes is not None
    assert before.bytes is not None
    assert peak.bytes - before.bytes > 250 * 2**20 or peak.source != "resident-set"


class Point:
    dist = None
    module = "somewhere"

    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value


def test_registry_is_lazy_and_suggests(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [Point("plugged", "json:dumps"), Point("broken", "no.such.module:x")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points)
    registry = Registry("thing", "some.group", {"alpha": ("antigravity_missing:x", "a"), "beta": ("json:loads", "b")})
    assert registry.names() == ["alpha", "beta", "broken", "plugged"]
    assert registry.resolve("plugged")({"a": 1}) == '{"a": 1}'
    with pytest.raises(UserError, match="unknown thing 'bet': did you mean 'beta'"):
        registry.resolve("bet")
    with pytest.raises(UserError, match=r"'broken' \(no.such.module:x, from somewhere\) cannot be loaded"):
        registry.resolve("broken")
    clash: Any = [Point("beta", "x:y")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: clash)
    with pytest.warns(UserWarning, match="already has: it is left out"):
        assert Registry("thing", "some.group", {"beta": ("json:loads", "b")}).resolve("beta")("1") == 1
