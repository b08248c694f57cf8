"""Frozen batch norms, done by the convolutions in front of them.

A batch norm in evaluation mode is a factor s and a shift for each channel. Behind a convolution it is that convolution
with the kernel s W and another bias, and behind an adapted one s (W + B_i A_i): two passes over the images less, one
forward and one back, and nothing saved for the second. Which norm stands behind which convolution is seen in a pass; a
second pass must give the same numbers, or all stays as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bella.folding import agree, bind_random, random_inputs
from bella.layers import LowRankLayer, ParticleHead
from bella.particles import Inputs


@torch.inference_mode(False)  # what is made here serves gradients later on, whoever asked first
@torch.no_grad()
def fold_norms(model: nn.Module, layers: Mapping[str, LowRankLayer | ParticleHead], inputs: Inputs) -> dict[str, nn.Module]:
    """Let convolutions do the work of the frozen batch norms behind them.

    Args:
        model: with adapted layers; all its own parameters are frozen.
        layers: the adapted ones, by path.
        inputs: a batch for one particle, for its shapes.

    Returns:
        What was replaced, path -> module as it was; `unfold_norms` puts it back.
    """
    norms = {name: module for name, module in model.named_modules() if _activation_behind(module) is not None}
    if not norms:
        return {}
    probe = random_inputs(inputs)
    bind_random(layers)
    pairs, expected = _pairs(model, norms, probe)
    replaced: dict[str, nn.Module] = {}
    for norm_name, name in pairs.items():
        norm, module = norms[norm_name], model.get_submodule(name)
        scale, shift = _affine(norm)
        activation = _activation_behind(norm)
        assert activation is not None
        if isinstance(module, LowRankLayer):
            replaced[f"{name}.base"] = module.base
            module.base, module.scale = _scaled(module.base, scale, shift), scale
        else:
            replaced[name] = module
            model.set_submodule(name, _scaled(module, scale, shift))
        replaced[norm_name] = norm
        model.set_submodule(norm_name, activation)
    bind_random(layers)  # the same numbers, now with the factors of the norms
    if not (expected.is_meta or agree(model(probe), expected)):
        unfold_norms(model, replaced)
        return {}
    return replaced


def unfold_norms(model: nn.Module, replaced: Mapping[str, nn.Module]) -> None:
    """Put back what `fold_norms` has replaced."""
    for name, module in replaced.items():
        model.set_submodule(name, module)
    for module in model.modules():
        if isinstance(module, LowRankLayer):
            module.scale = None


def _activation_behind(module: nn.Module) -> nn.Module | None:
    """What a batch norm does beside normalising; None: it is none that a convolution could do."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None or module.running_mean.dtype.itemsize < 4:
        return None
    if type(module) is nn.BatchNorm2d:
        return nn.Identity()
    drop, activation = getattr(module, "drop", None), getattr(module, "act", None)  # timm's norm and activation in one
    return nn.Sequential(drop, activation) if isinstance(drop, nn.Module) and isinstance(activation, nn.Module) else None


def _pairs(model: nn.Module, norms: Mapping[str, nn.Module], probe: Inputs) -> tuple[dict[str, str], Tensor]:
    """Norm -> the convolution whose output it takes, by path; and what the model gives."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no other takes an identity over
    pairs: dict[str, str] = {}
    used: list[str] = []

    def makes(name: str) -> object:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            made[id(output)] = (name, output)

        return hook

    def takes(name: str) -> object:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            used.append(name)
            if id(args[0]) in made:
                pairs[name] = made[id(args[0])][0]

        return hook

    hooks = []
    for name, module in model.named_modules():
        if name in norms:
            hooks.append(module.register_forward_pre_hook(takes(name)))
        elif _can_scale(module) and not name.endswith(".base"):
            hooks.append(module.register_forward_hook(makes(name)))
    try:
        output = model(probe)
    finally:
        for handle in hooks:
            handle.remove()
    # One norm a convolution, each called once: a shared one may have other inputs.
    once = {norm: conv for norm, conv in pairs.items() if used.count(norm) == 1 and list(pairs.values()).count(conv) == 1}
    return once, output


def _can_scale(module: nn.Module) -> bool:
    base = module.base if isinstance(module, LowRankLayer) else module
    return isinstance(base, nn.Conv2d) and base.weight.dtype.itemsize >= 4


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A frozen norm's factor and shift for each channel."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    return scale.detach(), (shift if norm.bias is None else shift + norm.bias).detach()


def _scaled(conv: nn.Module, scale: Tensor, shift: Tensor) -> nn.Conv2d:
    """A convolution followed by a factor and a shift, as one of the same kind; the original stays as it is."""
    assert isinstance(conv, nn.Conv2d)
    made = copy.copy(conv)
    weight = (conv.weight * scale.view(-1, 1, 1, 1)).contiguous(memory_format=torch.channels_last)
    bias = shift if conv.bias is None else conv.bias * scale + shift
    made._parameters = {"weight": nn.Parameter(weight, requires_grad=False), "bias": nn.Parameter(bias, requires_grad=False)}
    return made
