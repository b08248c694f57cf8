"""What training and evaluation need of data: examples by index."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bella.particles import Inputs


class Examples(Protocol):
    """A split of a data set."""

    targets: Tensor
    """Class indices (N,), int64."""

    def __len__(self) -> int:
        """N."""
        ...

    def inputs(self, indices: Tensor, device: torch.device) -> Inputs:
        """What the model takes, (b, ...), of the examples with the given indices (b,), on a device."""
        ...
