"""How different the particles are: in weights, in what the weights do to a layer, and in what they predict."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bella.particles import Particles
from bella.svgd import KERNEL_SPACES


def weight_distances(particles: Particles) -> Tensor:
    """Euclidean distances over everything a particle trains, (n, n), float64."""
    return KERNEL_SPACES["factors"].squared_distances(particles).sqrt()


def product_distances(particles: Particles) -> Tensor:
    """Euclidean distances over the changes (alpha / r) B A of the adapted weights and whatever else trains, (n, n), float64.

    The same as `weight_distances` for full-rank particles, and unlike it not changed by re-factorising B A.
    """
    return KERNEL_SPACES["products"].squared_distances(particles).sqrt()


def function_distances(logits: Tensor) -> Tensor:
    """Mean total variation distance of predicted probabilities, (n, N, C) -> (n, n), between 0 and 1."""
    probabilities = F.softmax(logits.double(), dim=-1)
    rows = [(probabilities - own).abs().sum(-1).mean(-1) / 2 for own in probabilities]
    return torch.stack(rows)


def disagreement(logits: Tensor) -> Tensor:
    """Share of examples on which two particles predict different classes, (n, N, C) -> (n, n)."""
    classes = logits.argmax(-1)
    return (classes[:, None] != classes[None]).double().mean(-1)


def mean_off_diagonal(matrix: Tensor) -> float | None:
    """The mean over pairs of different particles; None for one particle, which has no pairs."""
    n = matrix.shape[0]
    if n < 2:
        return None
    return float((matrix.sum() - matrix.diagonal().sum()) / (n * (n - 1)))
