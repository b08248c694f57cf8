"""theta_0 in fewer bits: bf16, or linear layers in 4 bits (NF4, Dettmers et al. 2023, arXiv 2305.14314) through bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bella.errors import UserError


def set_precision(model: nn.Module, precision: str) -> None:
    """Hold a model in "bf16", or its linear layers in "4bit" and the rest in bf16, in place.

    Raises:
        UserError: bitsandbytes is needed and not installed.
    """
    on_meta = next(model.parameters()).is_meta
    model.to(torch.bfloat16)
    if precision != "4bit":
        return
    for name, layer in list(model.named_modules()):
        # The projection to the vocabulary stays in bf16, as transformers and QLoRA leave it; so do sizes that
        # bitsandbytes' blocks of 64 inputs and 32 outputs do not fit.
        blocks_fit = type(layer) is nn.Linear and layer.in_features % 64 == 0 and layer.out_features % 32 == 0
        if blocks_fit and not name.endswith("lm_head"):
            assert isinstance(layer, nn.Linear)
            model.set_submodule(name, _in_four_bits(layer, on_meta))


def _in_four_bits(layer: nn.Linear, on_meta: bool) -> nn.Module:
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError("precision=4bit needs bitsandbytes: pip install 'bella-bench[quantized]'") from error

    library: Any = bitsandbytes.nn

    class Differentiable(library.Linear4bit):
        """In evaluation mode bitsandbytes packs the weight for a product that, on a CPU, has no gradient."""

        def train(self, mode: bool = True) -> Any:
            return super().train(True)

    made: Any = Differentiable(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=torch.bfloat16,
        quant_type="nf4",
        device="meta",
    )
    if on_meta:  # for shapes and bytes: two numbers a byte
        packed = torch.empty((layer.weight.numel() + 1) // 2, 1, dtype=torch.uint8, device="meta")
        made.weight = nn.Parameter(packed, requires_grad=False)
    else:
        weight = library.Params4bit(layer.weight.data, requires_grad=False, compress_statistics=False, quant_type="nf4")
        made.weight = weight.to(layer.weight.device)
    made.bias = layer.bias
    return made
