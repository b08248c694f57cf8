"""The kernel gradient of small depthwise convolutions against autograd's, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bella.depthwise import SmallDepthwiseConv2d, swap_in, swap_out


@given(
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    bias=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_gradients_equal_autograds(kernel: int, stride: int, padding: int, height: int, width: int, bias: bool) -> None:
    if min(height, width) + 2 * padding < kernel:
        return
    plain = nn.Conv2d(3, 3, kernel, stride, padding, groups=3, bias=bias).double()
    swapped = copy.deepcopy(plain)
    swap_in(swapped)
    assert type(swapped) is SmallDepthwiseConv2d
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    found = []
    for layer in (plain, swapped):
        own = x.clone().requires_grad_()
        output = layer(own)
        (output.square().sum() + output.sum()).backward()
        found.append([output, own.grad, *(p.grad for p in layer.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 8, 5, groups=4), nn.Conv2d(4, 4, 5), nn.Conv2d(4, 4, 5, dilation=2, groups=4)],
)
def test_other_convolutions_stay(layer: nn.Conv2d) -> None:
    swap_in(layer)
    assert type(layer) is nn.Conv2d


def test_swapped_out_it_is_the_plain_class() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2, groups=4))
    swap_in(model)
    swap_out(model)
    assert type(model[0]) is nn.Conv2d
