"""Particles that are pushed apart in what they predict, not in what they weigh.

Sources: Wang et al. 2019, "Function Space Particle Optimization for Bayesian Neural Networks" (arXiv 1902.09754); D'Angelo &
Fortuin 2021, "Repulsive Deep Ensembles are Bayesian" (arXiv 2106.11642), whose kernel density estimate in function space this is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bella.errors import UserError
from bella.inference import Inference
from bella.kernels import median_bandwidth, rbf, squared_distances
from bella.particles import Particles


@dataclass(frozen=True)
class FunctionRepulsion(Inference):
    """An ensemble whose particles repel each other through their predicted probabilities on the minibatch.

    With f_i the probabilities (b * C numbers) of particle i, particle i descends

        grad_i  +  gamma * J_i^T  ( sum_j d/d f_i k(f_i, f_j)  /  sum_j k(f_i, f_j) ),

    J_i = d f_i / d theta_i and k the RBF kernel (D'Angelo & Fortuin's function-space update, divided by N as U is). The
    sums over j include i.

    Attributes:
        repulsion: gamma; None: 1/N, the posterior.
        bandwidth: "median" (h = median^2 / log n, anew each step), or h itself.
    """

    repulsion: float | None = None
    bandwidth: float | str = "median"

    pushes_predictions = True

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if (isinstance(self.bandwidth, str) and self.bandwidth != "median") or (
            not isinstance(self.bandwidth, str) and self.bandwidth <= 0
        ):
            raise UserError(f"bandwidth is {self.bandwidth!r}: 'median', or a number above 0")
        if self.repulsion is not None and self.repulsion < 0:
            raise UserError(f"repulsion is {self.repulsion}: 0 or more (left out: 1/N)")

    def transform(self, particles: Particles, training_size: int) -> None:
        """Leave the gradients as they are: the push is already in them."""

    def prediction_gradient(self, logits: Tensor, training_size: int) -> Tensor:
        """gamma * d f_i / d logits_i ^T (...), (n, b, C)."""
        n = logits.shape[0]
        gamma = 1 / training_size if self.repulsion is None else self.repulsion
        if n == 1 or gamma == 0:
            return torch.zeros_like(logits)
        f = torch.softmax(logits.detach().double(), dim=-1)
        squared = squared_distances([f])
        h = median_bandwidth(squared) if isinstance(self.bandwidth, str) else float(self.bandwidth)
        if h == 0:
            return torch.zeros_like(logits)
        K = rbf(squared, h)
        flat = f.flatten(1)
        # d/d f_i k_ij = -(2/h) k_ij (f_i - f_j), summed over j
        at_f = (-(2 / h) * (K.sum(1, keepdim=True) * flat - K @ flat) / K.sum(1, keepdim=True)).view_as(f)
        at_logits = f * (at_f - (at_f * f).sum(-1, keepdim=True))  # through the softmax
        return (gamma * at_logits).to(logits.dtype)

    def describe(self, training_size: int) -> dict[str, float | str]:
        """gamma and gamma * N."""
        gamma = 1 / training_size if self.repulsion is None else self.repulsion
        return {"gamma": gamma, "temperature": gamma * training_size, "bandwidth": self.bandwidth}
