"""Convolutions on images of a few pixels, such as the last ones of a network on images of 32 or 64 px, on a CPU.

oneDNN is made for larger ones. On one pixel it takes about three times as long for a 1x1 convolution as the matrix product that
this is. And without AVX-512 it takes many times as long for the gradient of a depthwise kernel as for the convolution itself, where
the image is no larger than the kernel (3x3 ones: smaller); summed tap by tap over the pixels that meet, it is a few products.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEW = 4
"""Pixels up to which a 1x1 convolution is faster as a product of matrices."""


def is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether a convolution is a linear map of every pixel's channels."""
    return layer.kernel_size == (1, 1) and layer.groups == 1 and layer.padding in ((0, 0), "valid", "same")


def few_pixels(x: Tensor) -> bool:
    """Whether images (b, channels, h, w) are so small that a 1x1 convolution of them should be `pointwise`."""
    return not x.is_cuda and x.shape[2] * x.shape[3] <= FEW


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution with a kernel (out, channels, 1, 1): images (b, channels, h, w) to (b, out, h, w), channels-last."""
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class SmallPointwiseConv2d(nn.Conv2d):
    """A 1x1 `nn.Conv2d` that is a product of matrices where that pays; the same numbers but for rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """(b, channels, h, w) to (b, out, h', w')."""
        picked = input[..., :: self.stride[0], :: self.stride[1]]
        if input.dim() < 4 or not few_pixels(picked):
            return super().forward(input)
        return pointwise(picked, self.weight, self.bias)


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
    """Have the convolutions of a model that these are for use them."""
    for module in model.modules():
        if type(module) is nn.Conv2d and (small := _small_kind(module)) is not None:
            module.__class__ = small


def swap_out(model: nn.Module) -> None:
    """Give a model its plain convolutions back."""
    for module in model.modules():
        if isinstance(module, SmallPointwiseConv2d | SmallDepthwiseConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]


def _small_kind(layer: nn.Conv2d) -> type[nn.Conv2d] | None:
    if is_pointwise(layer):
        return SmallPointwiseConv2d
    depthwise = layer.groups == layer.in_channels == layer.out_channels
    plain = layer.dilation == (1, 1) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return SmallDepthwiseConv2d if depthwise and plain and min(layer.kernel_size) >= 3 else None


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
            meeting = [
                [
                    _meeting(pixels.shape[1 + axis], pushed.shape[1 + axis], tap, ctx.stride[axis], ctx.padding[axis])
                    for tap in range(taps)
                ]
                for axis, taps in enumerate(weight.shape[2:])
            ]
            for (dy, rows), (dx, columns) in itertools.product(*(enumerate(axis) for axis in meeting)):
                if rows is not None and columns is not None:
                    met = pixels[:, rows[1], columns[1]] * pushed[:, rows[0], columns[0]]
                    for_weight[:, 0, dy, dx] = met.sum((0, 1, 2))
        if ctx.biased and ctx.needs_input_grad[2]:
            for_bias = gradient.sum((0, 2, 3))
        return for_x, for_weight, for_bias, None, None


def _meeting(inputs: int, outputs: int, tap: int, stride: int, padding: int) -> tuple[slice, slice] | None:
    """Along one axis: the outputs to which a tap of the kernel brings a pixel, and these pixels; None: it meets none."""
    first = max(0, -((tap - padding) // stride))
    last = min(outputs - 1, (inputs - 1 + padding - tap) // stride)
    if last < first:
        return None
    start = first * stride + tap - padding
    return slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride)
