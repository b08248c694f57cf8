"""SVGD with a kernel of its own for every layer: a layer repels by how far its own weights are apart.

One kernel over a whole network weakens as its dimension grows; kernels over parts are the usual remedy (Zhuo et al. 2018,
"Message Passing Stein Variational Gradient Descent", arXiv 1711.04425; Wang et al. 2018, arXiv 1711.07168).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bella.errors import UserError
from bella.inference import Inference
from bella.kernels import median_bandwidth, rbf, squared_distances
from bella.particles import Particles
from bella.svgd import average_gradients, repel_parameters


@dataclass(frozen=True)
class LayerwiseSVGD(Inference):
    """The SVGD direction (bella/svgd.py), layer by layer, each with its own kernel and its own median bandwidth.

    Attributes:
        repulsion: gamma; None: 1/N, the posterior.
    """

    repulsion: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        if self.repulsion is not None and self.repulsion < 0:
            raise UserError(f"repulsion is {self.repulsion}: 0 or more (left out: 1/N)")

    @torch.no_grad()
    def transform(self, particles: Particles, training_size: int) -> None:
        """Replace the gradients of U by phi, in place."""
        n, rows = particles.num_particles, particles.shard.rows
        if n == 1:
            return
        gamma = 1 / training_size if self.repulsion is None else self.repulsion
        for layer in particles.layers().values():
            squared = squared_distances([numbers for numbers, _ in layer])
            h = median_bandwidth(squared)
            K = rbf(squared, h)
            average_gradients([gradient for _, gradient in layer], K / n, rows)
            if h > 0 and gamma > 0:
                repel_parameters(layer, K, gamma / (h * n), rows)

    def describe(self, training_size: int) -> dict[str, float | str]:
        """gamma and gamma * N."""
        gamma = 1 / training_size if self.repulsion is None else self.repulsion
        return {"gamma": gamma, "temperature": gamma * training_size, "kernel": "layers", "bandwidth": "median"}
