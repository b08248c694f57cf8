"""SVGD against a reference written straight from the formula, and against what it should sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from baselines.full_rank import FullRankParticles
from bella.diversity import product_distances
from bella.errors import UserError
from bella.kernels import median_bandwidth, squared_distances
from bella.lowrank import LowRankParticles
from bella.particles import Particles
from bella.svgd import SVGD


class Free(Particles):
    """Particles that are points in d dimensions and nothing else."""

    default_learning_rate = 1.0

    def __init__(self, points: Tensor) -> None:
        super().__init__(points.shape[0], points.shape[0], list(range(points.shape[0])))
        self._allocate({"x": points.shape[1:]}, one_buffer=True, device=points.device, dtype=points.dtype)
        self.storage[0].data.copy_(points)

    def chunk_logits(self, prepared: Any, rows: slice) -> Tensor:
        raise NotImplementedError

    def merge(self, index: int) -> nn.Module:
        raise NotImplementedError

    def direction(self, gradients: Tensor, rule: SVGD, training_size: int = 100) -> Tensor:
        self.zero_gradients()
        self.storage[0].grad.copy_(gradients)
        rule.transform(self, training_size)
        return self.storage[0].grad.clone()


def reference(theta: np.ndarray, gradients: np.ndarray, gamma: float, bandwidth: float | None) -> np.ndarray:
    """phi_i = (1/n) sum_j [k(theta_j, theta_i) grad_j - gamma d/d theta_j k(theta_j, theta_i)], float64, in loops."""
    theta, gradients = theta.astype(np.float64), gradients.astype(np.float64)
    n = len(theta)
    distances = [np.linalg.norm(theta[i] - theta[j]) for i in range(n) for j in range(i)]
    h = np.median(distances) ** 2 / np.log(n) if bandwidth is None else bandwidth
    phi = np.zeros_like(theta)
    for i in range(n):
        for j in range(n):
            k = np.exp(-np.sum((theta[j] - theta[i]) ** 2) / h)
            phi[i] += (k * gradients[j] - gamma * k * (-2 / h) * (theta[j] - theta[i])) / n
    return phi


@pytest.mark.parametrize("n", [2, 3, 7, 16, 17, 40])
@pytest.mark.parametrize("bandwidth", [None, 3.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_direction_equals_the_formula(n: int, bandwidth: float | None, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(n)
    theta = (3 + torch.randn(n, 9, generator=generator, dtype=torch.float64)).to(dtype)
    gradients = torch.randn(n, 9, generator=generator, dtype=torch.float64).to(dtype)
    rule = SVGD(repulsion=0.7, bandwidth="median" if bandwidth is None else bandwidth)
    found = Free(theta).direction(gradients, rule).double().numpy()
    expected = reference(theta.numpy(), gradients.numpy(), 0.7, bandwidth)
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["full-rank", "low-rank"])
def test_one_kernel_over_the_whole_particle(kind: str) -> None:
    """Several tensors (full-rank) or columns of one buffer (low-rank) make one vector a particle."""
    if kind == "full-rank":
        particles: Particles = FullRankParticles(make_network(), 4, head="4")
    else:
        particles = LowRankParticles(make_network(), 4, targets=["0", "2"], head="4", rank=2, initial_b_std=0.5)
    torch.manual_seed(1)
    particles.zero_gradients()
    for stored in particles.storage:
        assert stored.grad is not None
        stored.grad.copy_(torch.randn_like(stored))
    theta = np.concatenate([s.detach().flatten(1).numpy() for s in particles.storage], 1)
    gradients = np.concatenate([s.grad.flatten(1).numpy().copy() for s in particles.storage if s.grad is not None], 1)
    SVGD(repulsion=2.0).transform(particles, 50)
    found = np.concatenate([s.grad.flatten(1).numpy() for s in particles.storage if s.grad is not None], 1)
    expected = reference(theta, gradients, 2.0, None)
    assert np.abs(found - expected).max() <= 1e-10 * np.abs(expected).max()


def test_default_repulsion_is_the_posterior() -> None:
    theta, gradients = torch.randn(3, 4).double(), torch.randn(3, 4).double()
    found = Free(theta).direction(gradients, SVGD(), training_size=250).numpy()
    assert np.allclose(found, reference(theta.numpy(), gradients.numpy(), 1 / 250, None), rtol=1e-10)
    assert SVGD().describe(250)["temperature"] == pytest.approx(1.0)


def test_one_particle_is_gradient_descent() -> None:
    gradients = torch.randn(1, 5)
    assert torch.equal(Free(torch.randn(1, 5)).direction(gradients, SVGD(repulsion=5.0)), gradients)


@pytest.mark.parametrize("extra", [0, 20])
def test_close_particles_beside_a_far_one_are_right_in_float32(extra: int) -> None:
    """1e-4 apart with another at distance 100: a float32 Gram matrix would be wrong by orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(3 + extra, 6, generator=generator) * 1e-4
    theta[0] = 1.0
    theta[1] = 1.0
    theta[1, 0] += 1e-4
    theta[2] = 1.0
    theta[2, 1] += 100.0
    squared = squared_distances([theta])
    exact = np.square(theta.double().numpy()[:, None] - theta.double().numpy()[None]).sum(-1)
    assert float(squared[0, 1]) == pytest.approx(exact[0, 1], rel=1e-6)
    rule = SVGD(repulsion=1.0, bandwidth=1e-8)  # a kernel that sees the close pair
    found = Free(theta).direction(torch.zeros_like(theta), rule).double().numpy()
    expected = reference(theta.numpy(), np.zeros_like(theta.numpy()), 1.0, 1e-8)
    assert np.abs(found[:3] - expected[:3]).max() <= 1e-5 * np.abs(expected[:3]).max()
    assert expected[0, 0] > 0 > expected[1, 0]  # descending -phi drives them apart


def test_identical_particles_average_and_do_not_repel() -> None:
    gradients = torch.randn(4, 3).double()
    found = Free(torch.ones(4, 3).double()).direction(gradients, SVGD(repulsion=1.0))
    assert torch.allclose(found, gradients.mean(0).expand(4, -1))


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
@settings(max_examples=60, deadline=None)
def test_bandwidth_has_numpys_median(points: list[float]) -> None:
    theta = np.array(points)[:, None]
    pairs = [abs(a - b) for i, a in enumerate(points) for b in points[:i]]
    found = median_bandwidth(squared_distances([torch.tensor(theta)]))
    assert found == pytest.approx(np.median(pairs) ** 2 / math.log(len(points)), rel=1e-9, abs=1e-300)


def sample_gaussian(n: int, covariance: Tensor, mean: Tensor, steps: int, rate: float) -> Tensor:
    torch.manual_seed(0)
    d = len(mean)
    particles = Free(torch.randn(n, d).double())
    precision = torch.linalg.inv(covariance)
    for _ in range(steps):
        x = particles.storage[0].detach()
        x -= rate * particles.direction((x - mean) @ precision, SVGD(repulsion=1.0))
    return particles.storage[0].detach()


def test_samples_a_gaussian() -> None:
    covariance, mean = torch.tensor([[1.0, 0.5], [0.5, 2.0]]).double(), torch.tensor([1.0, -2.0]).double()
    x = sample_gaussian(200, covariance, mean, steps=1500, rate=0.5)
    assert (x.mean(0) - mean).abs().max() < 0.05
    assert (torch.cov(x.T) - covariance).abs().max() < 0.1 * covariance.abs().max()


def test_variance_collapses_where_dimensions_outnumber_particles() -> None:
    """Known of SVGD with the median bandwidth; docs/architecture.md states it. d = 100, n = 50: about 4 % of the variance."""
    x = sample_gaussian(50, torch.eye(100).double(), torch.zeros(100).double(), steps=1500, rate=0.5)
    fraction = float(x.var(0).mean())
    print(f"variance fraction {fraction:.4f}")
    assert 0.03 < fraction < 0.05


def factor_particles() -> LowRankParticles:
    return LowRankParticles(make_network(), 3, targets=["0", "2"], head="4", rank=2, initial_b_std=0.7, alpha=3.0)


def formed_distances(stacked: dict[str, Tensor]) -> Tensor:
    vectors = [1.5 * (stacked[f"{name}.B"] @ stacked[f"{name}.A"]).flatten(1) for name in ("0", "2")]
    vectors += [stacked["4.weight"].flatten(1), stacked["4.bias"]]
    theta = torch.cat(vectors, 1)
    return (theta[:, None] - theta[None]).square().sum(-1)


def test_product_distances_are_the_formed_products_and_ignore_refactorisation() -> None:
    particles = factor_particles()
    stacked = {name: leaf.detach().clone() for name, leaf in particles.stacked_parameters().items()}
    found = product_distances(particles)
    assert torch.allclose(found.square(), formed_distances(stacked), rtol=1e-10, atol=1e-12)
    mixing = torch.tensor([[2.0, 1.0], [0.5, -1.0]]).double()
    leaves = particles.stacked_parameters()
    with torch.no_grad():
        leaves["0.A"].copy_(mixing @ stacked["0.A"])
        leaves["0.B"].copy_(stacked["0.B"] @ torch.linalg.inv(mixing))
    assert torch.allclose(product_distances(particles), found, rtol=1e-9)


def test_product_kernel_equals_autograd_over_formed_products() -> None:
    particles = factor_particles()
    n, gamma, h = 3, 1.3, 4.0
    torch.manual_seed(2)
    particles.zero_gradients()
    particles.storage[0].grad.copy_(torch.randn_like(particles.storage[0]))
    gradients = {name: leaf.grad.clone() for name, leaf in particles.stacked_parameters().items()}
    values = {name: leaf.detach().clone().requires_grad_() for name, leaf in particles.stacked_parameters().items()}
    k = torch.exp(-formed_distances(values) / h)
    SVGD(repulsion=gamma, bandwidth=h, kernel="products").transform(particles, 10)
    for i in range(n):
        others = values  # d/d theta_j k(theta_j, theta_i): the gradient of row i with respect to the first argument
        frozen = {name: value.detach() for name, value in others.items()}
        for name in values:
            expected = torch.zeros_like(frozen[name][i])
            for j in range(n):
                moved = {key: value.clone() for key, value in frozen.items()}
                own = frozen[name][j].clone().requires_grad_()
                moved[name] = torch.stack([own if p == j else frozen[name][p] for p in range(n)])
                if j != i:
                    (slope,) = torch.autograd.grad(torch.exp(-formed_distances(moved)[j, i] / h), own)
                    expected -= gamma * slope / n
                expected += k[j, i].detach() * gradients[name][j] / n
            found = particles.stacked_parameters()[name].grad
            assert found is not None
            assert torch.allclose(found[i], expected, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "factor"}, "did you mean 'factors'"),
        ({"bandwidth": "mean"}, "bandwidth is 'mean'"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"repulsion": -1.0}, "repulsion is -1.0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SVGD(**options)
