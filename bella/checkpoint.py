"""Particles on disk: safetensors, never pickle. theta_0 is not in the file; it has a name and a checksum of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bella.errors import UserError
from bella.files import CHECKSUM, checksum, written_whole
from bella.particles import Particles


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, complete or not at all, with a checksum of its tensors.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    here = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with written_whole(path) as temporary:
        try:
            save_file(here, temporary, {**(metadata or {}), CHECKSUM: _checksum(here)})
        except SafetensorError as error:  # how the library reports a full disk
            raise OSError(f"{path}: {error}") from error


FORMAT = "bella-particles/1"


def load_tensors(path: Path, form: str | None = None) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: the file.
        form: what its header must call its format, where it says one; None: anything.

    Raises:
        UserError: it is missing, damaged, no safetensors file, or of another format.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)
            metadata = opened.metadata() or {}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); delete it, or take another copy") from error
    found, expected = metadata.get("format"), metadata.get(CHECKSUM)
    if form is not None and found not in (None, form):
        raise UserError(f"{path}: format {found!r}, this version reads {form!r}: delete it, or use the version that wrote it")
    if expected is not None and expected != _checksum(tensors):
        raise UserError(f"{path}: damaged (its checksum is another one); delete it, or take another copy")
    return tensors


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    return checksum((name, str(t.dtype), tuple(t.shape), t.reshape(-1).view(torch.uint8).numpy()) for name, t in tensors.items())


def save_particles(particles: Particles, path: Path) -> None:
    """Write every trainable parameter of every particle, name -> (n, ...); of all processes' particles, by the leading one."""
    tensors = {name: particles.shard.gather(tensor.detach()) for name, tensor in particles.stacked_parameters().items()}
    if particles.shard.leads:
        save_tensors(tensors, path, {"format": FORMAT, "parameterisation": type(particles).__name__})
    particles.shard.everyone_done()


def load_particles(particles: Particles, path: Path) -> None:
    """Read particles written by `save_particles` into particles of the same architecture; each process takes its own.

    Raises:
        UserError: the file is damaged, or its names or shapes are of another architecture; nothing is changed then.
    """
    tensors = load_tensors(path, FORMAT)
    stacked = particles.stacked_parameters()
    for name in [*stacked, *tensors]:
        here = (particles.total_rows, *stacked[name].shape[1:]) if name in stacked else "nothing"
        there = tuple(tensors[name].shape) if name in tensors else "nothing"
        if here != there:
            raise UserError(
                f"{path}: holds particles of another architecture: {name} is {there} in the file and {here} in the model; "
                "use the backbone, targets, rank and number of particles it was trained with"
            )
    with torch.no_grad():
        for name, tensor in stacked.items():
            tensor.copy_(tensors[name] if particles.shares_rows else tensors[name][particles.shard.rows])
