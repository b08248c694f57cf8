"""Depthwise convolutions whose weights train, on images no larger than their kernel (3x3 ones: smaller).

On a CPU without AVX-512 oneDNN takes many times as long for the gradient of such a kernel as for the convolution itself, which
comes to a large share of a training step of a full-rank EfficientNet on images of 64 px. Summed tap by tap over the pixels
that meet, it is a few products.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SmallDepthwiseConv2d(nn.Conv2d):
    """A depthwise `nn.Conv2d` with a fast gradient for its kernel where that pays; the same numbers but for rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """(b, channels, h, w) to (b, channels, h', w')."""
        largest = max(self.kernel_size)
        pays = max(input.shape[2:]) <= (largest if largest >= 5 else largest - 1)
        if input.is_cuda or not self.weight.requires_grad or not pays:
            return super().forward(input)
        return _TapByTap.apply(input, self.weight, self.bias, self.stride, self.padding)


def swap_in(model: nn.Module) -> None:
    """Have the depthwise convolutions of a model that this is for use it."""
    for module in model.modules():
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = SmallDepthwiseConv2d


def swap_out(model: nn.Module) -> None:
    """Give a model its plain convolutions back."""
    for module in model.modules():
        if isinstance(module, SmallDepthwiseConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]


def _fits(layer: nn.Conv2d) -> bool:
    depthwise = layer.groups == layer.in_channels == layer.out_channels
    plain = layer.dilation == (1, 1) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return depthwise and plain and min(layer.kernel_size) >= 3


class _TapByTap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        """As `F.conv2d`."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.biased = stride, padding, bias is not None
        return F.conv2d(x, weight, bias, stride, padding, groups=x.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """For the images, the kernel and the bias."""
        x, weight = ctx.saved_tensors
        channels = x.shape[1]
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            arguments = (list(ctx.stride), list(ctx.padding), [1, 1], False, [0, 0], channels, [True, False, False])
            for_x = torch.ops.aten.convolution_backward(gradient, x, weight, None, *arguments)[0]
        if ctx.needs_input_grad[1]:
            pixels, pushed = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
            for_weight = torch.zeros_like(weight)
            for dy in range(weight.shape[2]):
                for dx in range(weight.shape[3]):
                    (into_y, from_y), (into_x, from_x) = (
                        _meeting(pixels.shape[1 + axis], pushed.shape[1 + axis], tap, ctx.stride[axis], ctx.padding[axis])
                        for axis, tap in enumerate((dy, dx))
                    )
                    met = pixels[:, from_y, from_x] * pushed[:, into_y, into_x]
                    for_weight[:, 0, dy, dx] = met.sum((0, 1, 2))
        if ctx.biased and ctx.needs_input_grad[2]:
            for_bias = gradient.sum((0, 2, 3))
        return for_x, for_weight, for_bias, None, None


def _meeting(inputs: int, outputs: int, tap: int, stride: int, padding: int) -> tuple[slice, slice]:
    """Along one axis: the outputs to which a tap of the kernel brings a pixel, and these pixels."""
    first = max(0, -((tap - padding) // stride))
    last = min(outputs - 1, (inputs - 1 + padding - tap) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    start = first * stride + tap - padding
    return slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride)
