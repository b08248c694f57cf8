"""The training loop: particles that should be independent are, and everything is seeded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import Points, make_network, make_points
from torch import nn

from baselines.full_rank import FullRankParticles
from bella.diversity import weight_distances
from bella.errors import UserError
from bella.fit import Recipe, clip_gradients, fit, loss_and_gradients
from bella.inference import Independent
from bella.lowrank import LowRankParticles
from bella.particles import Particles, derive_seed
from bella.svgd import SVGD

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=3, batch_size=8, learning_rate=0.05)


def make(kind: str, n: int, **options: Any) -> Particles:
    if kind == "full-rank":
        return FullRankParticles(make_network(), n, head="4", **options)
    return LowRankParticles(make_network(), n, targets=["0", "2"], head="4", rank=2, **options)


def trained(particles: Particles, recipe: Recipe, rule: Any = None, seed: int = 5) -> list[torch.Tensor]:
    fit(particles, rule or Independent(), make_points(60, 1), make_points(30, 2), recipe, seed=seed, device=CPU)
    return [stored.detach().clone() for stored in particles.storage]


@pytest.mark.parametrize("kind", ["full-rank", "low-rank"])
@pytest.mark.parametrize("minibatches", ["shared", "per-particle"])
def test_an_ensemble_is_independent_runs(kind: str, minibatches: Any) -> None:
    """n = 3 equals three runs of n = 1 with the same seeds; without best-epoch choice, which looks at the average."""
    recipe = replace(RECIPE, minibatches=minibatches, epochs=1)
    together = trained(make(kind, 3, seeds=[11, 12, 13]), recipe)
    for i, seed in enumerate([11, 12, 13]):
        alone = trained(make(kind, 1, seeds=[seed]), recipe)
        for ours, theirs in zip(together, alone, strict=True):
            assert torch.allclose(ours[i], theirs[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["full-rank", "low-rank"])
def test_a_rate_for_each_particle(kind: str) -> None:
    recipe = replace(RECIPE, epochs=1)
    together = trained(make(kind, 2, seeds=[11, 12]), replace(recipe, learning_rate=(0.05, 0.01)))
    for i, (seed, rate) in enumerate([(11, 0.05), (12, 0.01)]):
        alone = trained(make(kind, 1, seeds=[seed]), replace(recipe, learning_rate=rate))
        for ours, theirs in zip(together, alone, strict=True):
            assert torch.allclose(ours[i], theirs[0], rtol=1e-9, atol=1e-12)
    with pytest.raises(UserError, match="2 numbers for 3 particles"):
        trained(make(kind, 3), replace(recipe, learning_rate=(0.05, 0.01)))


@pytest.mark.parametrize("kind", ["full-rank", "low-rank"])
@pytest.mark.parametrize("rule", [Independent(), SVGD(repulsion=0.1)])
def test_the_same_seed_gives_the_same_numbers(kind: str, rule: Any) -> None:
    first, second = (trained(make(kind, 3), RECIPE, rule) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    other = trained(make(kind, 3), RECIPE, rule, seed=6)
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("kind", ["full-rank", "low-rank"])
def test_particles_start_apart_and_stay_apart(kind: str) -> None:
    particles = make(kind, 4)
    off = ~torch.eye(4, dtype=torch.bool)
    assert bool((weight_distances(particles)[off] > 0).all())
    one_step = Recipe(epochs=1, batch_size=60, learning_rate=0.05)
    trained(particles, one_step, SVGD(repulsion=1.0))
    assert bool((weight_distances(particles)[off] > 0).all())


@pytest.mark.parametrize("kind", ["full-rank", "low-rank"])
def test_gradients_are_those_of_each_particle_alone_with_its_prior(kind: str) -> None:
    particles = make(kind, 3, initial_std=0.5) if kind == "full-rank" else make(kind, 3, initial_b_std=0.5)
    points = make_points(12, 3)
    particles.zero_gradients()
    loss_and_gradients(particles, particles.prepare(points.x), points.targets.expand(3, -1))
    std, size = 0.7, 12
    particles.add_prior_gradient(std, size)
    for i in range(3):
        values = {name: leaf[i].detach().clone().requires_grad_() for name, leaf in particles.stacked_parameters().items()}
        network = make_network()
        plain = dict(network.named_parameters())
        if kind == "full-rank":
            weights = values
        else:
            weights = {**plain, "4.weight": values["4.weight"], "4.bias": values["4.bias"]}
            for name in ("0", "2"):
                weights[f"{name}.weight"] = plain[f"{name}.weight"].detach() + values[f"{name}.B"] @ values[f"{name}.A"]
        logits = torch.func.functional_call(network, weights, (points.x,))
        zero = torch.zeros((), dtype=torch.float64)
        prior = sum(
            torch.distributions.Normal(plain[name].detach() if kind == "full-rank" and "4." not in name else zero, zero + std)
            .log_prob(value)
            .sum()
            for name, value in values.items()
        )
        (F.cross_entropy(logits, points.targets) - prior / size).backward()
        for name, leaf in particles.stacked_parameters().items():
            assert leaf.grad is not None
            assert torch.allclose(leaf.grad[i], values[name].grad, rtol=1e-9, atol=1e-12), name


def test_each_particle_is_clipped_by_its_own_norm() -> None:
    particles = make("full-rank", 3)
    particles.zero_gradients()
    torch.manual_seed(0)
    for stored in particles.storage:
        assert stored.grad is not None
        stored.grad.copy_(torch.randn_like(stored) * torch.tensor([1e-4, 1.0, 10.0]).view(-1, *[1] * (stored.dim() - 1)))
    before = torch.cat([s.grad.flatten(1).clone() for s in particles.storage if s.grad is not None], 1)
    clip_gradients(particles, 2.0)
    after = torch.cat([s.grad.flatten(1) for s in particles.storage if s.grad is not None], 1)
    assert torch.equal(after[0], before[0])
    for i in (1, 2):
        assert torch.allclose(after[i], before[i] * 2.0 / before[i].norm())


def test_the_best_epoch_is_kept() -> None:
    """Labels of the validation split contradict the training split: every epoch makes it worse, so the first is kept."""
    training = make_points(60, 1)
    opposite = Points(training.x, 2 - training.targets)
    particles = make("low-rank", 2)
    history = fit(particles, Independent(), training, opposite, replace(RECIPE, epochs=4), seed=5, device=CPU)
    assert history.best_epoch == 0
    losses = [epoch.validation_nll for epoch in history.epochs]
    assert losses[0] == min(losses)
    from bella.fit import validation_nll

    assert validation_nll(particles, opposite, RECIPE, CPU) == pytest.approx(losses[0], rel=1e-6)


def test_training_learns() -> None:
    particles = make("low-rank", 3)
    history = fit(particles, SVGD(), make_points(200, 1), make_points(100, 2), replace(RECIPE, epochs=20), seed=1, device=CPU)
    assert history.epochs[history.best_epoch].validation_nll < 0.5 < history.epochs[0].validation_nll


def test_schedule_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [Independent().learning_rate(step, 4, 12) for step in range(13)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[4] == pytest.approx(1.0)
    assert rates[8] == pytest.approx(0.5)
    assert rates[12] == pytest.approx(0.0)


def test_a_loss_that_is_not_finite_is_reported() -> None:
    training = make_points(60, 1)
    training.x[3] = float("nan")
    with pytest.raises(UserError, match="lower learning_rate"):
        fit(make("low-rank", 2), Independent(), training, make_points(30, 2), RECIPE, seed=1, device=CPU)


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"learning_rate": -1.0}, {"prior_std": 0.0}, {"warmup": 2.0}])
def test_recipes_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(bad))):
        Recipe(**bad)


def test_full_rank_gradients_have_no_second_copy() -> None:
    particles = make("full-rank", 3)
    points = make_points(12, 3)
    particles.zero_gradients()
    loss_and_gradients(particles, particles.prepare(points.x), points.targets.expand(3, -1))
    ranges = [(s.grad.data_ptr(), s.grad.data_ptr() + s.grad.numel() * 8) for s in particles.storage if s.grad is not None]
    for leaves in particles._leaves.values():
        for leaf in leaves.values():
            assert leaf.grad is not None
            assert any(start <= leaf.grad.data_ptr() < stop for start, stop in ranges)
    assert all(bool((s.grad.flatten(1).abs().sum(1) > 0).all()) for s in particles.storage if s.grad is not None)


def test_full_rank_particles_are_the_models_they_merge_to() -> None:
    particles = make("full-rank", 3)
    x = make_points(4, 0).x
    assert torch.equal(particles(x), torch.stack([particles.merge(i)(x) for i in range(3)]))
    assert isinstance(particles.merge(0), nn.Sequential)
    assert derive_seed(1, "a") != derive_seed(1, "b")
