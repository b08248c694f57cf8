"""How gradients move the particles: a transform of the stacked gradients, in place, before the optimizer."""

from __future__ import annotations

from typing import Protocol

from bella.particles import Particles


class Inference(Protocol):
    """One inference rule."""

    def transform(self, particles: Particles, training_size: int) -> None:
        """Turn the gradients of U (`.grad` of the particles' storage) into what the optimizer descends, in place.

        Args:
            particles: the particles, with their gradients.
            training_size: N, the number of training examples.
        """
        ...

    def describe(self, training_size: int) -> dict[str, float | str]:
        """What was used, for the record."""
        ...


class Independent:
    """Every particle follows its own gradient: an ensemble of MAP estimates."""

    def transform(self, particles: Particles, training_size: int) -> None:
        """Leave the gradients as they are."""

    def describe(self, training_size: int) -> dict[str, float | str]:
        """Nothing to say."""
        return {}
