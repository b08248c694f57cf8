"""What comes in front of the fan-out, computed once an example and kept for the whole training.

The input of the fan-out depends on theta_0 and the example alone. Where examples do not change between epochs, the first
epoch's are stored, and later ones start from them: with adapters in the last 4 of 12 blocks two thirds of the forward
pass are saved, and the images need not be read again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from bella.data import Examples
from bella.folding import Shared
from bella.particles import Particles

LIMIT_BYTES = 2**30
"""A split whose features take more is computed anew each epoch."""


class FeatureCache:
    """Prepares batches of one split for all particles, each example's features once.

    What cannot be kept is prepared as if there were no cache: full-rank particles share nothing, and features above the limit
    would take the memory that chunks of particles save.

    Args:
        particles: whose `prepare` it stands for.
        examples: the split.
        device: where the particles are; the features stay there.
        limit_bytes: the most that the features of the split may take.
    """

    def __init__(self, particles: Particles, examples: Examples, device: torch.device, limit_bytes: int = LIMIT_BYTES) -> None:
        self._particles = particles
        self._examples = examples
        self._device = device
        self._limit = limit_bytes
        self._known = torch.zeros(len(examples), dtype=torch.bool)
        self._stored: list[Tensor | None] = []
        self._templates: dict[int, Shared] = {}
        self._usable = True

    def prepare(self, indices: Tensor) -> Any:
        """What `Particles.prepare` gives for the examples with these indices (b,)."""
        template = self._templates.get(len(indices))
        if template is not None and bool(self._known[indices].all()):
            return self._restored(template, indices.to(self._device))
        prepared = self._particles.prepare(self._examples.inputs(indices, self._device))
        if self._usable:
            self._keep(prepared, indices)
        return prepared

    def fill(self, batches: Iterable[Tensor]) -> None:
        """Compute the features of batches of indices, as preparing these batches one after the other would have."""
        for indices in batches:
            if not self._usable or indices.dim() != 1:
                return
            self.prepare(indices)

    def _keep(self, prepared: Any, indices: Tensor) -> None:
        """Store the features of a batch, if there are any and all of the split's fit."""
        if not isinstance(prepared, Shared) or prepared.arguments is None:
            self._usable = False
            return
        leaves, _ = tree_flatten(prepared.arguments)
        b, n = len(indices), len(self._examples)
        own = [_is_per_example(leaf, b) for leaf in leaves]
        if not self._templates:
            size = sum(leaf.numel() // b * leaf.element_size() for leaf, mine in zip(leaves, own, strict=True) if mine)
            if not any(own) or n * size > self._limit:
                self._usable = False
                return
            self._stored = [
                _physical(leaf).new_empty(n, *_physical(leaf).shape[1:]) if mine else None
                for leaf, mine in zip(leaves, own, strict=True)
            ]
        places = indices.to(self._device)
        for leaf, store in zip(leaves, self._stored, strict=True):
            if store is not None:
                store[places] = _physical(leaf.detach())
        self._known[indices] = True
        self._templates.setdefault(b, prepared)

    def _restored(self, template: Shared, places: Tensor) -> Shared:
        """A batch of the template's size with the features of other examples."""
        leaves, structure = tree_flatten(template.arguments)
        restored = [
            leaf if store is None else _logical(store[places], like=leaf) for leaf, store in zip(leaves, self._stored, strict=True)
        ]
        return Shared(template.inputs, False, tree_unflatten(restored, structure), template.outputs)


def _is_per_example(leaf: Any, b: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == b


def _channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _physical(tensor: Tensor) -> Tensor:
    """A batch in the order in which it lies in memory."""
    return tensor.permute(0, 2, 3, 1) if _channels_last(tensor) else tensor


def _logical(rows: Tensor, *, like: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2) if _channels_last(like) else rows
