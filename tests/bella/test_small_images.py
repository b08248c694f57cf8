"""Convolutions of few pixels and their gradients against torch's own, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bella.small_images import SmallDepthwiseConv2d, SmallPointwiseConv2d, few_pixels, swap_in, swap_out


@given(
    kernel=st.sampled_from([3, 5, 7]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 4),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    bias=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_depthwise_gradients_equal_autograds(kernel: int, stride: int, padding: int, height: int, width: int, bias: bool) -> None:
    if min(height, width) + 2 * padding < kernel:
        return
    plain = nn.Conv2d(3, 3, kernel, stride, padding, groups=3, bias=bias).double()
    check_swapped(plain, SmallDepthwiseConv2d, torch.randn(2, 3, height, width, dtype=torch.float64))


@given(
    stride=st.integers(1, 3),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    bias=st.booleans(),
    padding=st.sampled_from([0, "valid", "same"]),
    channels_last=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_pointwise_outputs_and_gradients_equal_autograds(
    stride: int, height: int, width: int, bias: bool, padding: int | str, channels_last: bool
) -> None:
    plain = nn.Conv2d(3, 5, 1, 1 if padding == "same" else stride, padding, bias=bias).double()
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    check_swapped(plain, SmallPointwiseConv2d, x.to(memory_format=torch.channels_last) if channels_last else x)


def test_pointwise_is_a_product_where_pixels_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(3, 5, 1)
    swap_in(layer)
    with torch.no_grad():
        unbatched = layer(torch.randn(3, 2, 2))
        monkeypatch.setattr(torch.nn.functional, "conv2d", None)
        assert few_pixels(torch.empty(9, 3, 2, 2))
        assert not few_pixels(torch.empty(9, 3, 2, 3))
        assert layer(torch.randn(9, 3, 2, 2)).is_contiguous(memory_format=torch.channels_last)
        with pytest.raises(TypeError):
            layer(torch.randn(9, 3, 2, 3))
    assert unbatched.shape == (5, 2, 2)


def check_swapped(plain: nn.Conv2d, kind: type[nn.Conv2d], x: Tensor) -> None:
    swapped = copy.deepcopy(plain)
    swap_in(swapped)
    assert type(swapped) is kind
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
    [
        nn.Conv2d(4, 4, 1, groups=4),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Conv2d(4, 8, 5, groups=4),
        nn.Conv2d(4, 4, 5),
        nn.Conv2d(4, 4, 5, dilation=2, groups=4),
    ],
)
def test_other_convolutions_stay(layer: nn.Conv2d) -> None:
    swap_in(layer)
    assert type(layer) is nn.Conv2d


def test_swapped_out_it_is_the_plain_class() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 5, padding=2, groups=4), nn.Conv2d(4, 4, 1))
    swap_in(model)
    swap_out(model)
    assert {type(layer) for layer in model} == {nn.Conv2d}
