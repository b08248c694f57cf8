"""Heads and seeds, the same for every parameterisation: a head trains whole, one a particle, each drawn from its own stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from bella.errors import UserError
from bella.particles import derive_seed


def linear_head(model: nn.Module, head: str) -> nn.Linear:
    """The head of a model, by its path.

    Raises:
        UserError: there is no linear layer there.
    """
    found = dict(model.named_modules()).get(head)
    if not isinstance(found, nn.Linear):
        raise UserError(f"the head {head!r} of {type(model).__name__} is {type(found).__name__}, not a linear layer")
    return found


def head_shapes(head: nn.Module, name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one particle's head."""
    return {f"{name}.{part}": tuple(tensor.shape) for part, tensor in head.named_parameters()}


@torch.no_grad()
def draw_head(particle: dict[str, Tensor], head: str, generator: torch.Generator) -> None:
    """Draw one particle's head as `nn.Linear` would; tensors carry a leading axis of 1."""
    bound = particle[f"{head}.weight"].shape[-1] ** -0.5
    for part in ("weight", "bias"):
        if (tensor := particle.get(f"{head}.{part}")) is not None:
            tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def copy_head(particle: Mapping[str, Tensor], head: str, model: nn.Module) -> None:
    """Write one particle's head into a plain model."""
    for part, tensor in linear_head(model, head).named_parameters():
        tensor.copy_(particle[f"{head}.{part}"][0])


def particle_seeds(seeds: int | Sequence[int], num_particles: int) -> list[int]:
    """One seed a particle: those given, or derived from a single one."""
    if isinstance(seeds, int):
        return [derive_seed(seeds, index) for index in range(num_particles)]
    if len(seeds) != num_particles:
        raise UserError(f"{len(seeds)} seeds for {num_particles} particles: give one each, or a single one")
    return list(seeds)
