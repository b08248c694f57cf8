"""Particles as PEFT's LoRA adapters and back, file by file: `adapter_config.json` and `adapter_model.safetensors`.

A LoRA adapter changes W by (alpha / r) B A (Hu et al. 2021, arXiv 2106.09685), and so does a particle. Files are written with
alpha = r, and with B multiplied by the scale. Nothing here imports peft: the files are its format, and what it loads is tested
against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bella.checkpoint import load_tensors, save_tensors
from bella.errors import UserError
from bella.particles import Particles

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

REFUSED = {"use_dora": "DoRA", "use_qalora": "QALoRA", "use_bdlora": "BD-LoRA", "fan_in_fan_out": "transposed weights"}
"""Variants whose change of a weight is not (alpha / r) B A."""


def write_peft_adapter(
    folder: Path, base: nn.Module, factors: Mapping[str, tuple[Tensor, Tensor]], saved: Mapping[str, Tensor], base_name: str
) -> None:
    """Write one particle as an adapter of a plain model.

    Args:
        folder: to write into.
        base: the model that PEFT will adapt; shapes suffice (the meta device).
        factors: path in `base` ("blocks.0.mlp.fc1"; "attn.in_proj") -> A (r, fan_in), B (out, r).
        saved: parameters that are replaced whole, by their path in `base` ("head.weight").
        base_name: what the adapter says it belongs to.

    Raises:
        UserError: PEFT's format cannot hold one of the layers; names it.
    """
    modules = dict(base.named_modules())
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, (A, B) in factors.items():
        target, own = _adapter_tensors(name, modules, A, B)
        ranks[target] = A.shape[0]
        tensors |= {f"{PREFIX}{key}": tensor.detach().cpu().clone() for key, tensor in own.items()}
    whole = sorted({name.rpartition(".")[0] for name in saved})
    for name in whole:
        if not isinstance(modules.get(name), nn.Linear):
            raise UserError(f"PEFT keeps a trained head in the model's own, and {type(base).__name__} has none called {name!r}")
    tensors |= {f"{PREFIX}{name}": tensor.detach().cpu().clone() for name, tensor in saved.items()}
    rank = max(ranks.values(), default=1)
    others = {name: own for name, own in ranks.items() if own != rank}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
        "modules_to_save": whole or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}; choose another folder with --out") from error


def _adapter_tensors(name: str, modules: Mapping[str, nn.Module], A: Tensor, B: Tensor) -> tuple[str, dict[str, Tensor]]:
    """The module that PEFT adapts, and its tensors by their names there."""
    parent = modules.get(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        attention = name.rpartition(".")[0]
        if name.endswith("out_proj"):
            raise UserError(
                f"{name}: PEFT (0.21) adds the change of an nn.MultiheadAttention's out_proj twice; "
                "train with targets that name its in_proj alone (targets=in_proj)"
            )
        rank = A.shape[0]
        return attention, {
            f"{attention}.lora_A.weight": A,
            f"{attention}.lora_B.weight": B,
            # PEFT adapts both projections or none: this one by nothing.
            f"{attention}.base_layer.out_proj.lora_A.weight": A.new_zeros(rank, parent.out_proj.in_features),
            f"{attention}.base_layer.out_proj.lora_B.weight": A.new_zeros(parent.out_proj.out_features, rank),
        }
    module = modules.get(name)
    if isinstance(module, nn.Conv2d):
        if module.groups > 1 or module.dilation != (1, 1):
            kind = "grouped" if module.groups > 1 else "dilated"
            raise UserError(f"{name} is a {kind} convolution, which PEFT's adapters do not hold: leave it out of the targets")
        if type(module) is not nn.Conv2d and module.kernel_size != (1, 1):
            raise UserError(f"{name} is a {type(module).__name__}, whose padding PEFT's adapters do not follow: leave it out")
        A = A.reshape(A.shape[0], *module.weight.shape[1:])
        B = B.reshape(*B.shape, 1, 1)
    elif not isinstance(module, nn.Linear):
        raise UserError(f"{name}: {type(module).__name__} is no layer that PEFT's adapters hold")
    return name, {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}


def read_peft_adapter(folder: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """An adapter as PEFT stores it: path -> A (r, fan_in) and B (out, r), scaled so that W changes by B A; what is saved whole.

    Raises:
        UserError: it is missing or damaged, or of a kind that is not W + B A; names which.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no PEFT adapter ({CONFIG} cannot be read: {error})") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise UserError(f"{folder}: a PEFT adapter of type {kind!r}; only LORA can be a low-rank particle")
    for key, title in REFUSED.items():
        if config.get(key):
            raise UserError(f"{folder}: uses {title} ({key}), which is not W + B A")
    if config.get("bias", "none") != "none":
        raise UserError(f"{folder}: trains biases (bias={config['bias']!r}), which a low-rank particle does not")
    tensors = load_tensors(folder / WEIGHTS)
    pairs: dict[str, dict[str, Tensor]] = {}
    saved: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        stem, factor, _ = (
            name.rpartition(".lora_A.weight") if name.endswith(".lora_A.weight") else name.rpartition(".lora_B.weight")
        )
        if not factor:
            saved[name] = tensor
            continue
        pairs.setdefault(stem, {})[factor[6]] = tensor.float()
    factors = {}
    for stem, pair in pairs.items():
        if set(pair) != {"A", "B"}:
            raise UserError(f"{folder}: {stem} has only one of its two factors")
        A, B = pair["A"].flatten(1), pair["B"].flatten(1)
        if stem.endswith(".base_layer.out_proj"):
            if bool(B.any()):
                raise UserError(f"{folder}: adapts {stem}, which PEFT (0.21) counts twice; it is not W + B A")
            continue
        factors[stem] = (A, B * _scale(config, stem, A.shape[0]))
    return factors, saved


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    own = next((value for key, value in patterns.items() if name == key or name.endswith(f".{key}")), None)
    alpha = float(config.get("lora_alpha", rank) if own is None else own)
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


@torch.no_grad()
def load_peft_adapters(
    particles: Particles, folders: Sequence[Path], *, prefix: str = "", head: tuple[str, str] | None = None
) -> None:
    """Set particles to PEFT adapters, one each. An adapter of lower rank is filled up with zeros.

    Args:
        particles: low-rank ones, over the model that the adapters were made for.
        folders: one a particle.
        prefix: where that model stands in the particles' own ("backbone.").
        head: the head's path in the particles' model and in the adapters ("head", "fc"); None: what is saved whole is refused.

    Raises:
        UserError: an adapter does not fit; nothing is changed then.
    """
    if particles.shares_rows:
        raise UserError(f"{type(particles).__name__} share their factors: adapters become particles of LowRankParticles")
    if len(folders) != particles.num_particles:
        raise UserError(f"{len(folders)} adapters for {particles.num_particles} particles: give one each")
    stacked = particles.stacked_parameters()
    made: list[dict[str, Tensor]] = []
    for folder in folders:
        factors, saved = read_peft_adapter(folder)
        own = {name: torch.zeros_like(tensor[0]) if name.endswith(".B") else tensor[0].clone() for name, tensor in stacked.items()}
        for stem, (A, B) in factors.items():
            name = f"{prefix}{stem}" if f"{prefix}{stem}.A" in own else f"{prefix}{stem}.in_proj"
            if f"{name}.A" not in own:
                raise UserError(f"{folder}: adapts {stem}, which is none of the particles' targets")
            into_a, into_b = own[f"{name}.A"], own[f"{name}.B"]
            rank = A.shape[0]
            if rank > into_a.shape[0] or A.shape[1] != into_a.shape[1] or B.shape[0] != into_b.shape[0]:
                raise UserError(
                    f"{folder}: {stem} is {B.shape[0]} x {A.shape[1]} of rank {rank}, and the particles' is "
                    f"{into_b.shape[0]} x {into_a.shape[1]} of rank {into_a.shape[0]}"
                )
            into_a[:rank], into_b[:, :rank] = A, B / particles.scale
        for name, tensor in saved.items():
            inside = name.replace(head[1], head[0], 1) if head is not None and name.startswith(f"{head[1]}.") else None
            if inside is None or inside not in own or own[inside].shape != tensor.shape:
                raise UserError(f"{folder}: saves {name} whole, which the particles do not train in that shape")
            own[inside] = tensor
        made.append(own)
    for index, own in enumerate(made):
        for name, tensor in own.items():
            stacked[name][index].copy_(tensor)
