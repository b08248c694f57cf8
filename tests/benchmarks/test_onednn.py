"""Linear layers as convolutions: the same numbers and gradients, only where that was asked for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.onednn import OneDnnLinear, fast_linear


@pytest.mark.parametrize("shape", [(64, 24), (4, 17, 24), (2, 3, 8, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_numbers_and_gradients_are_those_of_linear(shape: tuple[int, ...], bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(24, 40, bias=bias)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    upstream = torch.randn(*shape[:-1], 40, generator=generator)
    found = []
    for mode in (False, True):
        x.grad = None
        layer.zero_grad()
        if mode:
            with OneDnnLinear():
                y = layer(x)
        else:
            y = layer(x)
        y.backward(upstream)
        found.append([y.detach(), x.grad, *(p.grad for p in layer.parameters())])
    for plain, convolved in zip(*found, strict=True):
        assert plain is not None
        assert convolved is not None
        assert convolved.shape == plain.shape
        assert torch.allclose(convolved, plain, rtol=1e-5, atol=1e-5)


def test_what_does_not_suit_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("taken for a convolution")

    monkeypatch.setattr("benchmarks.onednn._as_convolution", refuse)
    with OneDnnLinear():
        F.linear(torch.rand(64, 8).double(), torch.rand(4, 8).double())
        F.linear(torch.rand(2, 8), torch.rand(4, 8))
        F.linear(torch.rand(64, 8, device="meta"), torch.rand(4, 8, device="meta"))
        with pytest.raises(AssertionError, match="taken for a convolution"):
            F.linear(torch.rand(64, 8), torch.rand(4, 8))


def test_a_gpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.onednn.on_amd_avx512", lambda: True)
    assert isinstance(fast_linear(torch.device("cpu")), OneDnnLinear)
    assert not isinstance(fast_linear(torch.device("cuda")), OneDnnLinear)
