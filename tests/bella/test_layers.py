"""Layers that compute several particles at once, against the formed weights and finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.layers import LowRankPointwiseConv2d


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_convolutions_have_the_gradients_of_finite_differences(stride: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = LowRankPointwiseConv2d(nn.Conv2d(6, 4, 1, stride=stride, bias=bias).double().requires_grad_(False))
    x, A, B = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 6, 5, 3), (2, 3, 6), (2, 4, 3)))

    def change(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        layer.bind(A, B)
        return layer(x)

    assert torch.autograd.gradcheck(change, (x, A, B))
    weights = layer.base.weight.flatten(1) + B @ A
    expected = torch.cat(
        [F.conv2d(x_i, w_i[:, :, None, None], layer.base.bias, stride) for x_i, w_i in zip(x.split(2), weights, strict=True)]
    )
    torch.testing.assert_close(change(x, A, B), expected)


class ScaledConv2d(nn.Conv2d):
    """A convolution that changes its weight before it uses it."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, 2 * self.weight, self.bias)


def test_a_convolution_with_a_forward_of_its_own_keeps_it() -> None:
    layer = LowRankPointwiseConv2d(ScaledConv2d(3, 4, 1).requires_grad_(False))
    layer.bind(torch.zeros(2, 1, 3), torch.zeros(2, 4, 1))
    x = torch.rand(4, 3, 2, 2)
    torch.testing.assert_close(layer(x), layer.base(x))
