"""theta_0 in fewer bits: bf16, or linear layers in 4 bits (NF4, Dettmers et al. 2023, arXiv 2305.14314) through bitsandbytes."""

from __future__ import annotations

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
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError("precision=4bit needs bitsandbytes: pip install 'bella-bench[quantized]'") from error
    for name, layer in list(model.named_modules()):
        # The projection to the vocabulary stays in bf16, as transformers and QLoRA leave it; so do sizes that
        # bitsandbytes' blocks of 64 inputs and 32 outputs do not fit.
        blocks_fit = type(layer) is nn.Linear and layer.in_features % 64 == 0 and layer.out_features % 32 == 0
        if not blocks_fit or name.endswith("lm_head"):
            continue
        assert isinstance(layer, nn.Linear)
        made = bitsandbytes.nn.Linear4bit(
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
            made.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4").to(
                layer.weight.device
            )
        made.bias = layer.bias
        model.set_submodule(name, made)
