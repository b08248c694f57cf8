"""How gradients move the particles: a transform of the stacked gradients, in place, before the optimizer.

Most rules are that and nothing else. One may also say how the learning rate runs, watch the steps, push the particles' predictions
apart, or train fewer networks than there are particles and draw the particles from what it has learned of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from bella.data import Examples
from bella.particles import Particles


class Inference(ABC):
    """One inference rule.

    Class attributes: `couples`, whether what one particle does depends on the others; where it does not, particles on
    different devices need not meet. `draws`, whether particles are drawn after the training (`draw`). `pushes_predictions`, whether
    predictions are pushed apart (`prediction_gradient`).
    """

    couples = True
    draws = False
    pushes_predictions = False

    @abstractmethod
    def transform(self, particles: Particles, training_size: int) -> None:
        """Turn the gradients of U (`.grad` of the particles' storage) into what the optimizer descends, in place.

        Args:
            particles: the particles, with their gradients.
            training_size: N, the number of training examples.
        """

    def learning_rate(self, step: int, warmup: int, total: int) -> float:
        """Share of the peak learning rate at a step (from 0): a linear rise, then a cosine that ends at 0."""
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    def begin_step(self, step: int, total: int) -> None:  # noqa: B027 (most do not ask)
        """Told before each step how many are done, and how many there will be."""

    def end_step(self, particles: Particles, step: int, total: int) -> None:  # noqa: B027
        """Told after each step, when the optimizer has moved the particles."""

    def prediction_gradient(self, logits: Tensor, training_size: int) -> Tensor:
        """What is added to the gradient of U at the particles' logits on a batch, (n, b, C) -> (n, b, C)."""
        raise NotImplementedError

    def trained_particles(self, num_particles: int) -> int:
        """How many networks are trained for n particles."""
        return num_particles

    def check(self, particles: Particles) -> None:  # noqa: B027
        """Refuse particles that the rule cannot serve, before any training.

        Raises:
            UserError: says why.
        """

    def draw(self, trained: Particles, drawn: Particles, training: Examples, device: torch.device, seed: int) -> dict[str, float]:
        """Set n particles to draws from what was learned, for a rule that `draws`.

        Args:
            trained: the networks, after their training.
            drawn: n particles of the same kind, to be filled.
            training: what was learned from.
            device: where the particles are.
            seed: of the draws.

        Returns:
            what was found, for the record.
        """
        raise NotImplementedError

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
