"""The update of the paper's released code, which is registered as `bella-svgd-released` and is not SVGD.

Source: the code released with Doan et al., arXiv 2407.20891, as its update reads; docs/released-code.md says what it amounts
to. With probability 0.95 a step leaves the gradients alone. In the others every parameter tensor, on its own, gets for
particle i, going over the particles j in order from acc = 0,

    j = i:   acc <- acc + g_i
    j != i:  acc <- ((acc + g_j) - (d / h^2) * 0.3) / n * k,    d = ||p_i - p_j||,  k = exp(-d^2 / (2 h^2)).

Beside SVGD: the repulsion is the number d, not the vector p_i - p_j; k scales all that was added before; the bandwidth h is
0.001, so k is exactly 0 for tensors farther apart than about 0.014, and then every particle but the last gets a gradient
of zero.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor

from bella.errors import UserError
from bella.inference import Inference
from bella.kernels import squared_distances
from bella.particles import Particles, derive_seed


class ReleasedSVGD(Inference):
    """The released update as a transform of stacked gradients.

    Args:
        skip_probability: chance that a step is plain gradient descent.
        bandwidth: h.
        repulsion: the factor of d / h^2.
    """

    def __init__(self, skip_probability: float = 0.95, bandwidth: float = 0.001, repulsion: float = 0.3) -> None:
        if not 0 <= skip_probability <= 1:
            raise UserError(f"skip_probability is {skip_probability}: between 0 and 1")
        if bandwidth <= 0:
            raise UserError(f"bandwidth is {bandwidth}: above 0")
        self.skip_probability = skip_probability
        self.bandwidth = bandwidth
        self.repulsion = repulsion
        self.steps = 0
        self.kernel_steps = 0
        self._zeroed = 0
        self._gradients = 0

    def transform(self, particles: Particles, training_size: int) -> None:
        """Replace the gradients by what the released code descends, in place. The coin of a step comes from the first seed."""
        coin = random.Random(derive_seed(particles.seeds[0], "released-coin", self.steps)).random()
        self.steps += 1
        if coin < self.skip_probability:
            return
        self.kernel_steps += 1
        for parameter in particles.stacked_parameters().values():
            gradient = parameter.grad
            assert gradient is not None
            moved = released_direction(parameter.detach(), gradient, self.bandwidth, self.repulsion)
            self._gradients += len(moved)
            self._zeroed += int((moved.flatten(1) == 0).all(1).sum())
            gradient.copy_(moved)

    def describe(self, training_size: int) -> dict[str, float | str]:
        """The settings, how many steps used the kernel, and which share of their gradients it made exactly zero."""
        return {
            "skip_probability": self.skip_probability,
            "bandwidth": self.bandwidth,
            "repulsion": self.repulsion,
            "steps": self.steps,
            "kernel_steps": self.kernel_steps,
            "zeroed_share": self._zeroed / self._gradients if self._gradients else 0.0,
        }

    def state(self) -> dict[str, Tensor]:
        """The counts: steps (which the coin depends on), kernel steps, gradients made zero, gradients."""
        return {"counts": torch.tensor([self.steps, self.kernel_steps, self._zeroed, self._gradients])}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on counting."""
        self.steps, self.kernel_steps, self._zeroed, self._gradients = state["counts"].tolist()


@torch.no_grad()
def released_direction(parameter: Tensor, gradient: Tensor, bandwidth: float, repulsion: float) -> Tensor:
    """What a kernel step of the released code makes of one tensor's gradients (n, ...), all particles at once."""
    n = parameter.shape[0]
    distances = squared_distances([parameter]).sqrt().to(gradient.dtype)
    kernel = torch.exp(-(distances**2) / (2 * bandwidth**2))
    direction = torch.zeros_like(gradient)
    one_each = (n, *[1] * (gradient.dim() - 1))
    for j in range(n):
        own = direction[j] + gradient[j]
        push = (distances[:, j] / bandwidth**2 * repulsion).view(one_each)
        direction = ((direction + gradient[j]) - push) / n * kernel[:, j].view(one_each)
        direction[j] = own
    return direction
