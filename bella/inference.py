"""How gradients move the particles: a transform of the stacked gradients, in place, before the optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from bella.particles import Particles


class Inference(ABC):
    """One inference rule.

    Class attribute `couples`: whether what one particle does depends on the others; where it does not, particles on
    different devices need not meet.
    """

    couples = True

    @abstractmethod
    def transform(self, particles: Particles, training_size: int) -> None:
        """Turn the gradients of U (`.grad` of the particles' storage) into what the optimizer descends, in place.

        Args:
            particles: the particles, with their gradients.
            training_size: N, the number of training examples.
        """

    def describe(self, training_size: int) -> dict[str, float | str]:
        """What was used, for the record."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What the rule remembers from step to step, for a checkpoint; nothing, for most rules."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:  # noqa: B027 (most remember nothing)
        """Take up what `state` gave."""


class Independent(Inference):
    """Every particle follows its own gradient: an ensemble of MAP estimates."""

    couples = False

    def transform(self, particles: Particles, training_size: int) -> None:
        """Leave the gradients as they are."""
