"""Layers that compute n particles at once on a folded batch.

The batch is folded particle-major: (n, b, ...) arrives as (n*b, ...). The frozen weight sees one large batch; the
low-rank change of each particle, W_i = W + B_i A_i, is applied to that particle's share of it. Shapes throughout:
A (n, r, fan_in), B (n, out, r), where a convolution's kernel is read as a matrix (out, in/groups * kh * kw).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.forward_ad import unpack_dual
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from bella.small_images import few_pixels, pointwise


class ParticleLayer(nn.Module):
    """A frozen layer with something of its own for every particle, bound before each pass.

    What the wrapped layer offers (`weight`, `in_features`, ...) stays readable, so that code which inspects it still
    runs; code which *computes* with it by hand never calls this layer, and `calls` tells.
    """

    base: nn.Linear | nn.Conv2d

    def __init__(self, base: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        """What the wrapped module has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class LowRankLayer(ParticleLayer):
    """W_i = W + B_i A_i for the particles whose factors are bound."""

    A: Tensor
    B: Tensor
    scale: Tensor | None = None

    def bind(self, A: Tensor, B: Tensor) -> None:
        """Use these factors, (k, r, fan_in) and (k, out, r), from now on.

        Where a norm is folded into the layer (bella/norms.py), W holds its factors `scale` (out,), and B gets them here.
        """
        self.A, self.B = A, B if self.scale is None else B * self.scale.view(-1, 1)

    def formed_weights(self) -> Tensor:
        """W + B_i A_i, (k, out, fan_in).

        Summed in the factors' precision, whatever the layer computes in: rounded once, to bf16, the sum keeps a change
        of a thousandth of W on average; the sum of two numbers that are bf16 already loses about half of it.
        """
        with torch.autocast("cuda" if self.A.is_cuda else "cpu", enabled=False):
            weight = self.base.weight.flatten(1).to(self.A.dtype)
            return torch.baddbmm(weight.expand(self.A.shape[0], -1, -1), self.B, self.A)


class LowRankLinear(LowRankLayer):
    """y = x W^T + x A_i^T B_i^T for x (n*b, ..., d_in)."""

    def forward(self, x: Tensor) -> Tensor:
        """(n*b, ..., d_in) to (n*b, ..., d_out)."""
        self.calls += 1
        output = self.base(x)
        folded = fold_rows(x, self.A.shape[0])
        reduced = torch.bmm(folded, self.A.mT.to(x.dtype))  # (n, m, r)
        rows = output.view(folded.shape[0], folded.shape[1], -1)
        return torch.baddbmm(rows, reduced, _transposed(self.B).to(x.dtype)).view(output.shape)


class LowRankPointwiseConv2d(LowRankLayer):
    """A 1x1 convolution without groups or padding: a linear map of every pixel's channels.

    The frozen convolution sees one large batch, and two narrow products are added in place. Forming W + B_i A_i instead
    reads the pixels once less, but the gradient of a formed matrix is a product as large as the layer's own
    (docs/performance.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n*b, in, h, w) to (n*b, out, h', w')."""
        self.calls += 1
        base = self.base
        assert isinstance(base, nn.Conv2d)
        differentiated_forward = unpack_dual(self.A).tangent is not None
        if x.shape[0] % self.A.shape[0] == 0 and type(base).forward is nn.Conv2d.forward and not differentiated_forward:
            kind = "cuda" if x.is_cuda else "cpu"  # shapes alone ("meta") have no precision
            dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            tensors = (t if t is None else t.to(dtype) for t in (x, base.weight, base.bias, self.A, self.B))
            return _PointwiseSum.apply(*tensors, base.stride)
        pixels = x[:, :, :: base.stride[0], :: base.stride[1]]
        return base(x) + apply_per_pixel(pixels, self.A.to(x.dtype), self.B.to(x.dtype))


class _PointwiseSum(torch.autograd.Function):
    """x W^T + x A_i^T B_i^T at every pixel, and its gradients for x, A and B; W is frozen.

    On a CPU these layers wait for memory. Autograd would form the change, and the change of the gradient, as images of
    their own and read each twice more; here the narrow products are added to what is there.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, stride: tuple[int, int]) -> Tensor:
        """Images (n*b, in, h, w), channels-last or copied so; A (n, r, in), B (n, out, r)."""
        picked = x[:, :, :: stride[0], :: stride[1]]
        # A clone, for autograd refuses to have a view that comes from here changed in place.
        output = pointwise(picked, weight, bias).clone() if few_pixels(picked) else F.conv2d(x, weight, bias, stride)
        output = output.contiguous(memory_format=torch.channels_last)
        reduced = torch.bmm(pixel_rows(picked, len(A)), A.mT)
        pixel_rows(output, len(A)).baddbmm_(reduced, B.mT)
        ctx.save_for_backward(x, weight, A, B, reduced)
        ctx.stride = stride
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """For x, A and B, where they are asked for."""
        x, weight, A, B, reduced = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        rows = pixel_rows(gradient, len(A))
        picked = x[:, :, :: ctx.stride[0], :: ctx.stride[1]]
        narrow = torch.bmm(rows, B.mT.contiguous().mT)  # MKL takes four times as long for B as it lies
        for_x = for_a = for_b = None
        if ctx.needs_input_grad[0]:
            if few_pixels(gradient):
                at_picked = pointwise(gradient, weight.transpose(0, 1))
            else:
                arguments = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, False, False])
                at_picked = torch.ops.aten.convolution_backward(gradient, picked, weight, None, *arguments)[0]
            at_picked = at_picked.contiguous(memory_format=torch.channels_last)
            pixel_rows(at_picked, len(A)).baddbmm_(narrow, A)
            for_x = at_picked
            if ctx.stride != (1, 1):
                for_x = torch.zeros_like(x)
                for_x[:, :, :: ctx.stride[0], :: ctx.stride[1]] = at_picked
        if ctx.needs_input_grad[3]:
            for_a = torch.bmm(narrow.mT, pixel_rows(picked, len(A)))
        if ctx.needs_input_grad[4]:
            for_b = torch.bmm(reduced.mT, rows).mT
        return for_x, None, None, for_a, for_b, None


class LowRankConv2d(LowRankLayer):
    """Any ungrouped convolution: A_i is a convolution to r channels, B_i a 1x1 convolution of those.

    The layer's own forward is called with A_i as its kernel, so its stride, dilation and padding rule hold (timm's
    `Conv2dSame` too).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n*b, in, h, w) to (n*b, out, h', w')."""
        self.calls += 1
        rank = self.A.shape[1]
        kernel_shape = self.base.weight.shape[1:]
        reduced = [
            call_with_kernel(self.base, A.view(rank, *kernel_shape).to(x.dtype), x_i)
            for A, x_i in zip(self.A, split_particles(x, self.A.shape[0]), strict=True)
        ]
        return self.base(x) + apply_per_pixel(torch.cat(reduced), self.B.to(x.dtype))


class LowRankGroupedConv2d(LowRankLayer):
    """A grouped or depthwise convolution: the kernels are formed, since B_i mixes no channels of A_i's output."""

    def forward(self, x: Tensor) -> Tensor:
        """(n*b, in, h, w) to (n*b, out, h', w')."""
        self.calls += 1
        kernels = self.formed_weights().view(-1, *self.base.weight.shape).to(x.dtype)  # (n, out, in/groups, kh, kw)
        parts = split_particles(x, kernels.shape[0])
        return torch.cat([functional_call(self.base, {"weight": k}, x_i) for k, x_i in zip(kernels, parts, strict=True)])


class ParticleHead(ParticleLayer):
    """A linear layer that trains whole, one a particle: weight (n, C, d), bias (n, C)."""

    weight_i: Tensor
    bias_i: Tensor | None

    def bind(self, weight: Tensor, bias: Tensor | None) -> None:
        """Use these weights, (k, C, d) and (k, C), from now on."""
        self.weight_i, self.bias_i = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """(n*b, ..., d) to (n*b, ..., C)."""
        self.calls += 1
        weight = self.weight_i.mT.to(x.dtype)
        folded = fold_rows(x, weight.shape[0])
        if self.bias_i is None:
            output = torch.bmm(folded, weight)
        else:
            output = torch.baddbmm(self.bias_i.unsqueeze(1).to(x.dtype), folded, weight)
        return output.view(*x.shape[:-1], -1)


class SplitMultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` with its projections as layers of their own, so that they can be adapted.

    The original reads `in_proj_weight` and `out_proj.weight` without calling a layer: wrapping one would do nothing.
    The parameters are shared with the original, not copied. Same call, same result; dropout is off, as everywhere here.
    """

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        # Kept out of the module tree: it owns the same parameters, and is put back when the adapters are taken out.
        object.__setattr__(self, "original", original)
        self.in_proj = linear_of(original.in_proj_weight, original.in_proj_bias)
        self.out_proj = linear_of(original.out_proj.weight, original.out_proj.bias)

    def __getattr__(self, name: str) -> Any:
        """What the wrapped module has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["original"], name)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`, for batched inputs."""
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        b, length, d = query.shape
        source = key.shape[1]
        if query.shape == key.shape == value.shape and query.data_ptr() == key.data_ptr() == value.data_ptr():
            projected = self.in_proj(query).chunk(3, dim=-1)
        else:  # rare here (cross-attention): three full projections, each used for its third
            projected = tuple(self.in_proj(t).chunk(3, dim=-1)[i] for i, t in enumerate((query, key, value)))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in projected)  # (b, heads, tokens, d/heads)
        mask = _additive_mask(attn_mask, key_padding_mask, b, self.num_heads, length, source, q.dtype)
        weights = None
        if need_weights:
            scores = q @ k.mT / q.shape[-1] ** 0.5
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        output = self.out_proj(mixed.transpose(1, 2).reshape(b, length, d))
        return (output if self.batch_first else output.transpose(0, 1)), weights


def _additive_mask(
    attn_mask: Tensor | None, padding: Tensor | None, b: int, heads: int, length: int, source: int, dtype: torch.dtype
) -> Tensor | None:
    """Both masks of `nn.MultiheadAttention` (True: not attended, or numbers to add) as one, broadcastable to (b, heads, L, S)."""
    masks = []
    if attn_mask is not None:
        masks.append(attn_mask if attn_mask.dim() == 2 else attn_mask.view(b, heads, length, source))
    if padding is not None:
        masks.append(padding.view(b, 1, 1, source))
    added = [torch.zeros_like(m, dtype=dtype).masked_fill_(m, float("-inf")) if m.dtype == torch.bool else m for m in masks]
    return sum(added[1:], added[0]) if added else None


def fold_rows(x: Tensor, n: int) -> Tensor:
    """(n*b, ..., d) -> (n, m, d): each particle's rows together.

    Raises:
        ValueError: the batch is not n times a whole number of examples.
    """
    if x.shape[0] % n:
        raise ValueError(f"a batch of {x.shape[0]} does not hold the same number of examples for each of {n} particles")
    return x.reshape(n, -1, x.shape[-1])


def split_particles(x: Tensor, n: int) -> tuple[Tensor, ...]:
    """(n*b, ...) -> n tensors (b, ...).

    Raises:
        ValueError: the batch is not n times a whole number of examples.
    """
    if x.shape[0] % n:
        raise ValueError(f"a batch of {x.shape[0]} does not hold the same number of examples for each of {n} particles")
    return x.chunk(n) if x.shape[0] == n else x.split(x.shape[0] // n)


def apply_per_pixel(x: Tensor, *matrices: Tensor) -> Tensor:
    """Apply each particle's matrices (n, c_out, c_in), in turn, to the channels of x (n*b, c, h, w).

    Channels-last images are read in place; the result is channels-last.
    """
    rows = pixel_rows(x, matrices[0].shape[0])
    for matrix in matrices:
        rows = torch.bmm(rows, _transposed(matrix))
    return rows.view(x.shape[0], x.shape[2], x.shape[3], -1).permute(0, 3, 1, 2)


def pixel_rows(x: Tensor, n: int) -> Tensor:
    """Images (n*b, c, h, w) as rows of channels (n, b*h*w, c): a view, if they are channels-last."""
    return fold_rows(x.permute(0, 2, 3, 1), n)


def _transposed(matrix: Tensor) -> Tensor:
    """B^T (n, r, out) laid out so that the products of the backward pass with B are fast: MKL takes four times as long
    for rows (m, out) times a B (out, r) whose rows are neighbours in memory."""
    return matrix.mT.contiguous() if matrix.shape[1] > matrix.shape[2] else matrix.mT


def call_with_kernel(layer: nn.Linear | nn.Conv2d, kernel: Tensor, x: Tensor) -> Tensor:
    """A convolution layer's own forward with another kernel and no bias."""
    replaced = {"weight": kernel}
    if layer.bias is not None:
        replaced["bias"] = kernel.new_zeros(kernel.shape[0])
    return functional_call(layer, replaced, x)


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer that uses given parameters, not copies of them."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    assert isinstance(weight, nn.Parameter)
    assert bias is None or isinstance(bias, nn.Parameter)
    layer.weight = weight
    layer.register_parameter("bias", bias)
    return layer
