"""SWAG: a Gaussian fitted to the path that a network takes at a constant learning rate, and particles drawn from it.

Sources: Maddox et al. 2019 (arXiv 1902.02476) for SWAG, Wilson & Izmailov 2020 (arXiv 2002.08791) for MultiSWAG, which starts
from several networks trained independently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bella.data import Examples
from bella.errors import UserError
from bella.inference import Inference
from bella.particles import Particles, derive_seed


@dataclass
class SWAG(Inference):
    """Moments of the weights along the last part of a training.

    From the share `start` of all steps on the rate is constant, and at `snapshots` steps the weights theta are added to the running
    mean and variance, and their deviation from the mean so far to the last `max_rank` columns D. A particle is then drawn as

        theta = mean + scale^(1/2) * ( Sigma_diag^(1/2) z_1 / sqrt(2)  +  D z_2 / sqrt(2 (K - 1)) ),

    with K columns, Sigma_diag the variance and z_1, z_2 ~ N(0, I) (Maddox et al., equation 1). The variance is summed as deviations
    (Welford 1962): the mean square less the squared mean loses it in float32 where weights are near 1.

    The optimizer here is AdamW, as for every method, and batch-norm statistics are theta_0's, so none are recomputed.

    Attributes:
        trajectories: networks that are trained; more than one is MultiSWAG. Particle i is drawn from network i mod trajectories.
        start: share of the steps after which weights are collected.
        swa_rate: the constant rate, as a share of the peak; until then the rate falls as ever, but no further.
        snapshots: how many times weights are collected, evenly spread.
        max_rank: K at most.
        scale: of the covariance.
    """

    trajectories: int = 1
    start: float = 0.5
    swa_rate: float = 0.5
    snapshots: int = 20
    max_rank: int = 20
    scale: float = 1.0
    _mean: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _squares: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _columns: list[list[Tensor]] = field(default_factory=list, init=False, repr=False)
    _collected: int = field(default=0, init=False, repr=False)

    couples = False
    draws = True

    def __post_init__(self) -> None:
        """Refuse what is out of range."""
        checks = {
            "trajectories": self.trajectories >= 1,
            "start": 0 <= self.start < 1,
            "swa_rate": 0 < self.swa_rate <= 1,
            "snapshots": self.snapshots >= 2,
            "max_rank": self.max_rank >= 2,
            "scale": self.scale >= 0,
        }
        for name, fine in checks.items():
            if not fine:
                raise UserError(f"{name} is {getattr(self, name)}: out of range")

    def transform(self, particles: Particles, training_size: int) -> None:
        """Leave the gradients as they are."""

    def learning_rate(self, step: int, warmup: int, total: int) -> float:
        """The usual rise and cosine, which stops at `swa_rate` and stays there from `start` on."""
        if step < warmup:
            return (step + 1) / warmup
        if step >= self._begins(total):
            return self.swa_rate
        return max(self.swa_rate, super().learning_rate(step, warmup, total))

    def _begins(self, total: int) -> int:
        return min(round(self.start * total), total - 1)

    def trained_particles(self, num_particles: int) -> int:
        """As many as there are trajectories, one a particle at most."""
        return min(self.trajectories, num_particles)

    @torch.no_grad()
    def end_step(self, particles: Particles, step: int, total: int) -> None:
        """Collect the weights, at the steps where that is due."""
        begins = self._begins(total)
        due = {begins + round((total - 1 - begins) * k / (self.snapshots - 1)) for k in range(self.snapshots)}
        if step not in due:
            return
        theta = [stored.detach() for stored in particles.storage]
        if not self._collected:
            self._mean, self._squares = ([torch.zeros_like(t) for t in theta] for _ in range(2))
            self._columns = [[] for _ in theta]
        self._collected += 1
        for index, now in enumerate(theta):
            from_old = now - self._mean[index]
            self._mean[index] += from_old / self._collected
            from_new = now - self._mean[index]
            self._squares[index] += from_old * from_new
            self._columns[index] = [*self._columns[index], from_new][-self.max_rank :]

    @torch.no_grad()
    def draw(self, trained: Particles, drawn: Particles, training: Examples, device: torch.device, seed: int) -> dict[str, float]:
        """Fill n particles with draws, each from the Gaussian of its trajectory."""
        columns = len(self._columns[0]) if self._columns else 0
        if columns < 2:
            raise UserError("SWAG collected fewer than two snapshots: train for more steps, or let it start earlier")
        for particle in range(drawn.num_particles):
            own = particle % trained.num_particles
            generator = torch.Generator().manual_seed(derive_seed(seed, "particle", particle))
            weights = torch.randn(columns, generator=generator)
            for index, stored in enumerate(drawn.storage):
                mean = self._mean[index][own]
                spread = (self._squares[index][own] / self._collected).sqrt()
                noise = spread * torch.randn(mean.shape, generator=generator).to(mean) / 2**0.5
                deviations = torch.stack([column[own] for column in self._columns[index]])
                noise += torch.tensordot(weights.to(mean), deviations, dims=1) / (2 * (columns - 1)) ** 0.5
                stored[particle] = mean + self.scale**0.5 * noise
        return {"snapshots": float(self._collected), "columns": float(columns)}

    def state(self) -> dict[str, Tensor]:
        """The moments so far."""
        if not self._collected:
            return {}
        state = {"collected": torch.tensor(self._collected)}
        for index, (mean, squares, columns) in enumerate(zip(self._mean, self._squares, self._columns, strict=True)):
            state |= {f"mean/{index}": mean, f"squares/{index}": squares, f"columns/{index}": torch.stack(columns)}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them up."""
        self._collected = int(state["collected"]) if state else 0
        tensors = sum(name.startswith("mean/") for name in state)
        self._mean = [state[f"mean/{index}"] for index in range(tensors)]
        self._squares = [state[f"squares/{index}"] for index in range(tensors)]
        self._columns = [list(state[f"columns/{index}"]) for index in range(tensors)]
