"""Small models and data that several tests share."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn


@dataclass
class Points:
    """An in-memory split of vectors."""

    x: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def inputs(self, indices: Tensor, device: torch.device) -> Tensor:
        return self.x[indices].to(device)


def make_points(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Points:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator, dtype=dtype)
    return Points(x, (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long())


def make_network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


@pytest.fixture
def network() -> nn.Sequential:
    return make_network()
