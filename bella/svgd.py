"""Stein variational gradient descent (Liu & Wang 2016, arXiv 1608.04471) on stacked particles.

With grad_j the gradient of U at particle j, gamma the repulsion and k the RBF kernel, particle i descends

    phi_i = (1/n) * sum_j [ k(theta_j, theta_i) * grad_j  -  gamma * d/d theta_j k(theta_j, theta_i) ].

U is the mean negative log-likelihood - log prior / N, so gamma = 1/N is the posterior of Liu & Wang, and gamma = 1
that posterior at temperature N. For n = 1 this is gradient descent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bella.errors import UserError, suggest
from bella.inference import Inference
from bella.kernels import column_blocks, distances_from_gram, median_bandwidth, product_gram, rbf, squared_distances
from bella.particles import Particles


@dataclass(frozen=True)
class KernelSpace:
    """Where distances between particles are measured.

    Attributes:
        squared_distances: particles -> (n, n), float64.
        repel: (particles, K, scale): add scale * sum_j k_ij * d/d theta_j d_ij^2 to each gradient, in place.
    """

    squared_distances: Callable[[Particles], Tensor]
    repel: Callable[[Particles, Tensor, float], None]


@dataclass(frozen=True)
class SVGD(Inference):
    """SVGD as a transform of stacked gradients.

    Attributes:
        repulsion: gamma; None: 1/N, the posterior.
        bandwidth: "median" (h = median^2 / log n, anew each step), or h itself.
        kernel: "factors", over everything a particle trains; "products", over the products B A (which do not change
            when A and B are re-factorised) and whatever else trains.
    """

    repulsion: float | None = None
    bandwidth: float | str = "median"
    kernel: str = "factors"

    def __post_init__(self) -> None:
        """Refuse what is unknown or out of range."""
        if self.kernel not in KERNEL_SPACES:
            raise UserError(f"unknown kernel {self.kernel!r}: {suggest(self.kernel, KERNEL_SPACES)}")
        if isinstance(self.bandwidth, str) and self.bandwidth != "median":
            raise UserError(f"bandwidth is {self.bandwidth!r}: 'median', or a number above 0")
        if not isinstance(self.bandwidth, str) and self.bandwidth <= 0:
            raise UserError(f"bandwidth is {self.bandwidth}: 'median', or a number above 0")
        if self.repulsion is not None and self.repulsion < 0:
            raise UserError(f"repulsion is {self.repulsion}: 0 or more (left out: 1/N)")

    def transform(self, particles: Particles, training_size: int) -> None:
        """Replace the gradients of U by phi, in place."""
        if particles.num_particles == 1:
            return
        gamma = 1 / training_size if self.repulsion is None else self.repulsion
        space = KERNEL_SPACES[self.kernel]
        with torch.no_grad():
            squared = space.squared_distances(particles)
            h = median_bandwidth(squared) if isinstance(self.bandwidth, str) else float(self.bandwidth)
            K = rbf(squared, h)
            # This and what follows: of the rows that are asked for.
            gradients = [stored.grad for stored in particles.storage if stored.grad is not None]
            average_gradients(gradients, K / particles.num_particles, particles.shard.rows)
            if h > 0 and gamma > 0:
                # -gamma * d/d theta_j k_ij = (gamma / h) * k_ij * d/d theta_j d_ij^2
                space.repel(particles, K, gamma / (h * particles.num_particles))

    def describe(self, training_size: int) -> dict[str, float | str]:
        """gamma and gamma * N, the temperature of the posterior that is sampled."""
        gamma = 1 / training_size if self.repulsion is None else self.repulsion
        return {"gamma": gamma, "temperature": gamma * training_size, "kernel": self.kernel, "bandwidth": self.bandwidth}


def average_gradients(gradients: Sequence[Tensor], weights: Tensor, rows: slice) -> None:
    """grad_i <- sum_j weights_ij grad_j, in place, for rows i of gradients (n, ...)."""
    for index, columns in column_blocks(gradients):
        block = gradients[index].flatten(1)[:, columns]
        block[rows] = (weights[rows] @ block.double()).to(block.dtype)


def repel_parameters(parameters: Sequence[tuple[Tensor, Tensor]], K: Tensor, scale: float, rows: slice) -> None:
    """sum_j k_ij * 2 (theta_j - theta_i), added scaled to rows of the gradients, for (parameter, gradient) pairs (n, ...).

    As one product with K - diag(K 1), in float64: the rows of that matrix sum to zero, and what is left of two large,
    nearly equal terms is the repulsion of two close particles.
    """
    laplacian = 2 * scale * (K - torch.diag(K.sum(1)))
    stacked = [parameter for parameter, _ in parameters]
    for index, columns in column_blocks(stacked):
        block = stacked[index].detach().flatten(1)[:, columns].double()
        gradient = parameters[index][1]
        gradient.view(gradient.shape[0], -1)[rows, columns] += (laplacian[rows] @ block).to(gradient.dtype)


def _factor_distances(particles: Particles) -> Tensor:
    shard = particles.shard
    flat = [stored.detach().flatten(1) for stored in particles.storage]
    return shard.sum(squared_distances([numbers[:, shard.columns(numbers.shape[1])] for numbers in flat]))


def _repel_factors(particles: Particles, K: Tensor, scale: float) -> None:
    pairs = [(stored, stored.grad) for stored in particles.storage if stored.grad is not None]
    repel_parameters(pairs, K, scale, particles.shard.rows)


def _product_distances(particles: Particles) -> Tensor:
    stacked = particles.stacked_parameters()
    pairs = particles.factor_pairs()
    rest = [stacked[name] for name in _outside_pairs(particles)]
    total = squared_distances(rest) if rest else None
    if pairs:
        products = distances_from_gram(product_gram((stacked[a], stacked[b]) for a, b in pairs)) * particles.scale**2
        total = products if total is None else total + products
    assert total is not None
    return total


def _outside_pairs(particles: Particles) -> list[str]:
    paired = {name for pair in particles.factor_pairs() for name in pair}
    return [name for name in particles.stacked_parameters() if name not in paired]


def _repel_products(particles: Particles, K: Tensor, scale: float) -> None:
    """The same with d_ij^2 = s^2 sum over layers of ||B_i A_i - B_j A_j||^2, whose gradients at particle j are

    d/d B_j = 2 s^2 (B_j A_j - B_i A_i) A_j^T      d/d A_j = 2 s^2 B_j^T (B_j A_j - B_i A_i).
    """
    stacked = particles.stacked_parameters()
    for name_a, name_b in particles.factor_pairs():
        A, B = stacked[name_a].detach().double(), stacked[name_b].detach().double()
        mean_a = torch.einsum("ij,jrd->ird", K, A)
        mean_b = torch.einsum("ij,jor->ior", K, B)
        for_b = torch.einsum("ij,jor->ior", K, B @ (A @ A.mT)) - B @ (A @ mean_a.mT)
        for_a = torch.einsum("ij,jrd->ird", K, (B.mT @ B) @ A) - (mean_b.mT @ B) @ A
        for name, change in ((name_a, for_a), (name_b, for_b)):
            gradient = stacked[name].grad
            assert gradient is not None
            gradient += (2 * scale * particles.scale**2 * change).to(gradient.dtype)
    for name in _outside_pairs(particles):
        gradient = stacked[name].grad
        assert gradient is not None
        repel_parameters([(stacked[name], gradient)], K, scale, particles.shard.rows)


KERNEL_SPACES: dict[str, KernelSpace] = {
    "factors": KernelSpace(_factor_distances, _repel_factors),
    "products": KernelSpace(_product_distances, _repel_products),
}
"""Kernel spaces by name; a new one is one more entry."""
