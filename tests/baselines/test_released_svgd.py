"""The released code's rule against a loop over its formula, and the facts that were seen of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import make_network

from baselines.released_svgd import ReleasedSVGD, released_direction
from bella.errors import UserError
from bella.lowrank import LowRankParticles

H, REPULSION = 0.001, 0.3


def reference(parameter: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """The formula in loops, float64."""
    n = len(parameter)
    result = np.zeros_like(gradient)
    for i in range(n):
        acc = np.zeros_like(gradient[i])
        for j in range(n):
            if j == i:
                acc = acc + gradient[i]
            else:
                d = np.linalg.norm(parameter[i] - parameter[j])
                acc = ((acc + gradient[j]) - (d / H**2) * REPULSION) / n * np.exp(-(d**2) / (2 * H**2))
        result[i] = acc
    return result


def four_matrices(spacing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Four 20 x 20 matrices that scatter by that much around one, and gradients of size 1."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    parameter = base + spacing * torch.randn(4, 20, 20, generator=generator, dtype=torch.float64)
    return parameter, torch.randn(4, 20, 20, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("spacing", [1.0, 0.01, 1e-4, 1e-5, 0.0])
def test_the_rule_is_the_formula(spacing: float) -> None:
    parameter, gradient = four_matrices(spacing)
    found = released_direction(parameter, gradient, H, REPULSION)
    np.testing.assert_allclose(found, reference(parameter.numpy(), gradient.numpy()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("spacing", [1.0, 0.01])
def test_apart_all_but_the_last_get_nothing(spacing: float) -> None:
    parameter, gradient = (tensor.float() for tensor in four_matrices(spacing))
    found = released_direction(parameter, gradient, H, REPULSION)
    assert (found[:3] == 0).all()
    torch.testing.assert_close(found[3], gradient[3], rtol=0, atol=0)


def test_close_together_the_scalar_swells_every_gradient() -> None:
    parameter, gradient = four_matrices(1e-4)
    found = released_direction(parameter, gradient, H, REPULSION)
    swollen = found.flatten(1).norm(dim=1) / gradient.flatten(1).norm(dim=1)
    assert 2 < swollen.mean() < 10, swollen


def test_at_one_place_the_gradients_are_averaged_with_unequal_weights() -> None:
    parameter, gradient = four_matrices(0.0)
    found = released_direction(parameter, gradient, H, REPULSION)
    weights = torch.tensor([1 / 64, 1 / 64, 1 / 16, 1 / 4], dtype=torch.float64)  # of g_0 .. g_3 in particle 0's
    torch.testing.assert_close(found[0], torch.einsum("j,jab->ab", weights, gradient))


def low_rank(seed: int = 0) -> LowRankParticles:
    torch.manual_seed(0)
    return LowRankParticles(make_network(), 3, targets=["*"], rank=2, seeds=seed, initial_b_std=0.1)


def transformed(particles: LowRankParticles, rule: ReleasedSVGD) -> torch.Tensor:
    particles.zero_gradients()
    gradient = particles.storage[0].grad
    assert gradient is not None
    gradient.copy_(torch.randn(gradient.shape, generator=torch.Generator().manual_seed(1)))
    before = gradient.clone()
    rule.transform(particles, 100)
    return gradient - before


def test_about_one_step_in_twenty_uses_the_kernel_the_same_ones_for_a_seed() -> None:
    def kernel_steps(seed: int) -> list[bool]:
        particles, rule = low_rank(seed), ReleasedSVGD()
        return [bool(transformed(particles, rule).any()) for _ in range(400)]

    first = kernel_steps(0)
    assert 8 <= sum(first) <= 34
    assert first == kernel_steps(0)
    assert first != kernel_steps(1)


def test_every_tensor_has_a_kernel_of_its_own() -> None:
    particles, rule = low_rank(), ReleasedSVGD(skip_probability=0)
    with torch.no_grad():
        name, moved = next(iter(particles.stacked_parameters().items()))
        moved.copy_(moved[:1].expand_as(moved).clone())
    particles.zero_gradients()
    for parameter in particles.stacked_parameters().values():
        parameter.grad.fill_(1.0)
    rule.transform(particles, 100)
    stacked = particles.stacked_parameters()
    assert (stacked[name].grad[0] != 0).all()
    others = [parameter.grad[0] for other, parameter in stacked.items() if other != name]
    assert others
    assert all((gradient == 0).all() for gradient in others)
    said = rule.describe(100)
    assert said["kernel_steps"] == said["steps"] == 1
    assert 0 < said["zeroed_share"] < 2 / 3


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="skip_probability is 2"):
        ReleasedSVGD(skip_probability=2)
    with pytest.raises(UserError, match="bandwidth is 0"):
        ReleasedSVGD(bandwidth=0)
