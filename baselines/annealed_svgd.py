"""SVGD whose driving force is annealed, so that particles first spread and then settle.

Source: D'Angelo & Fortuin 2021, "Annealed Stein Variational Gradient Descent" (arXiv 2101.09815).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bella.errors import UserError
from bella.particles import Particles
from bella.svgd import SVGD


@dataclass(frozen=True)
class AnnealedSVGD(SVGD):
    """SVGD with the driving term, the kernel-weighted gradients, times gamma(t) in [0, 1], and the repulsion as it is.

    With t the share of a cycle that is done, gamma(t) = tanh((1.3 t)^power) is the paper's hyperbolic schedule, and t^power its
    cyclical one. After the last cycle, for the share `settle` of all steps, gamma is 1: plain SVGD.

    Attributes:
        schedule: "hyperbolic" or "cyclical".
        cycles: C, how often gamma rises from 0.
        power: p.
        settle: share of the steps at the end that are plain SVGD.
    """

    schedule: str = "cyclical"
    cycles: int = 4
    power: float = 2.0
    settle: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what is unknown or out of range."""
        super().__post_init__()
        if self.schedule not in ("hyperbolic", "cyclical"):
            raise UserError(f"schedule is {self.schedule!r}: 'hyperbolic' or 'cyclical'")
        if self.cycles < 1 or self.power <= 0 or not 0 <= self.settle < 1:
            raise UserError("cycles is at least 1, power above 0, settle from 0 to below 1")
        self.begin_step(1, 1)

    def begin_step(self, step: int, total: int) -> None:
        """Set gamma for the step."""
        object.__setattr__(self, "_driving", self.driving(step, total))

    def driving(self, step: int, total: int) -> float:
        """gamma(t) at a step (from 0)."""
        annealed = (1 - self.settle) * total
        if step >= annealed:
            return 1.0
        length = annealed / self.cycles
        t = (step % length) / length
        return math.tanh((1.3 * t) ** self.power) if self.schedule == "hyperbolic" else t**self.power

    def transform(self, particles: Particles, training_size: int) -> None:
        """Weaken the gradients, then SVGD, which is linear in them."""
        for stored in particles.storage if particles.num_particles > 1 else ():
            if stored.grad is not None:
                stored.grad *= self._driving  # type: ignore[attr-defined]
        super().transform(particles, training_size)
