"""Particles on disk: safetensors, never pickle. theta_0 is not in the file; it has a name and a checksum of its own."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bella.errors import UserError
from bella.particles import Particles


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file: complete or not at all (a temporary file, flushed, then renamed)."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        UserError: it is missing, damaged, or no safetensors file.
    """
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); delete it, or take another copy") from error


def save_particles(particles: Particles, path: Path) -> None:
    """Write every trainable parameter of every particle, name -> (n, ...)."""
    tensors = {name: tensor.detach() for name, tensor in particles.stacked_parameters().items()}
    save_tensors(tensors, path, {"format": "bella-particles/1", "parameterisation": type(particles).__name__})


def load_particles(particles: Particles, path: Path) -> None:
    """Read particles written by `save_particles` into particles of the same architecture.

    Raises:
        UserError: the file is damaged, or its names or shapes are of another architecture; nothing is changed then.
    """
    tensors = load_tensors(path)
    stacked = particles.stacked_parameters()
    for name in [*stacked, *tensors]:
        here = tuple(stacked[name].shape) if name in stacked else "nothing"
        there = tuple(tensors[name].shape) if name in tensors else "nothing"
        if here != there:
            raise UserError(
                f"{path}: holds particles of another architecture: {name} is {there} in the file and {here} in the model; "
                "use the backbone, targets, rank and number of particles it was trained with"
            )
    with torch.no_grad():
        for name, tensor in stacked.items():
            tensor.copy_(tensors[name])
