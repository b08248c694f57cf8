"""Linear layers through oneDNN on processors where torch's own choice, MKL, is slow.

On a CPU torch multiplies float32 matrices with MKL, which leaves half of the speed of AMD's AVX-512 processors unused; its
convolutions go through oneDNN, which does not. A linear layer is a 1x1 convolution of an image one pixel high: same
numbers to rounding, same gradients, twice as fast there (docs/performance.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEWEST_ROWS = 16
"""A product with fewer rows takes no time either way."""


class OneDnnLinear(TorchFunctionMode):
    """While active, `F.linear` of float32 on the CPU is a convolution."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let everything else pass."""
        if func is F.linear and not kwargs and _suits(*args):
            return _as_convolution(*args)
        return func(*args, **(kwargs or {}))


def fast_linear(device: torch.device) -> AbstractContextManager[Any]:
    """The mode where it is faster, nothing elsewhere: by the kind of processor, so that a machine always chooses the same."""
    return OneDnnLinear() if device.type == "cpu" and on_amd_avx512() else contextlib.nullcontext()


def on_amd_avx512() -> bool:
    """Whether this is such a processor, and torch has both libraries."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    try:
        vendor = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return vendor and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _suits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and weight.dim() == 2
        and x.dim() > 1
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
    )


def _as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., d_in), weight (d_out, d_in): rows become pixels, channels-last, so that nothing is copied."""
    pixels = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    output = F.conv2d(pixels, weight[:, :, None, None], bias)
    return output.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])
