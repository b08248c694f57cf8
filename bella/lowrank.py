"""Low-rank particles: theta_i = theta_0 + B_i A_i, all n in one pass through one frozen backbone.

Source: Doan et al., "Bayesian Low-Rank LeArning (Bella)", arXiv 2407.20891. The factors of all particles are columns of
one (n, d) buffer; theta_0 is held once, whatever n is.
"""

from __future__ import annotations

import copy
import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import UserError
from bella.folding import FanOut
from bella.heads import copy_head, draw_head, head_shapes, linear_head, particle_seeds
from bella.layers import (
    LowRankConv2d,
    LowRankGroupedConv2d,
    LowRankLayer,
    LowRankLinear,
    LowRankPointwiseConv2d,
    ParticleHead,
    SplitMultiheadAttention,
)
from bella.norms import fold_norms, unfold_norms
from bella.particles import Inputs, Particles, derive_seed, map_inputs
from bella.small_images import is_pointwise


@dataclass(frozen=True)
class Adapter:
    """One weight matrix to adapt.

    Attributes:
        name: the layer's path in the model ("blocks.0.mlp.fc1"; "attn.in_proj" inside an `nn.MultiheadAttention`).
        out: rows of the weight read as a matrix.
        fan_in: its columns (in/groups * kh * kw for a convolution).
        rank: r, at most the smaller side.
    """

    name: str
    out: int
    fan_in: int
    rank: int

    @property
    def parameters(self) -> int:
        """Numbers in A and B together."""
        return self.rank * (self.out + self.fan_in)


def plan_adapters(model: nn.Module, targets: Sequence[str], rank: int, *, head: str | None = None) -> list[Adapter]:
    """Which layers of a model are adapted, from shapes alone (a model on the meta device will do).

    Args:
        model: any module.
        targets: patterns. A pattern is a layer's name or the end of its path ("fc1", "mlp.fc1"), `*` standing for
            anything ("layer4.*.conv2"); a name of an `nn.MultiheadAttention` means its `in_proj` and `out_proj`.
        rank: r; a layer whose smaller side is less gets that.
        head: the path of the head, which is never adapted.

    Raises:
        UserError: a pattern matches nothing that can be adapted.
    """
    if rank < 1:
        raise UserError(f"rank is {rank}: at least 1 is needed")
    shapes = _adaptable(model)
    shapes.pop(head or "", None)
    chosen: set[str] = set()
    for pattern in targets:
        found = {name for name in shapes if _matches(name, pattern)}
        if not found:
            ends = sorted({name.rsplit(".", 1)[-1] for name in shapes})
            near = difflib.get_close_matches(pattern, [*ends, *shapes], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"layers end in: {', '.join(ends)}"
            raise UserError(
                f"targets: {pattern!r} matches no linear, convolution or attention layer of {type(model).__name__}; {hint}"
            )
        chosen |= found
    return [Adapter(name, out, fan_in, min(rank, out, fan_in)) for name, (out, fan_in) in shapes.items() if name in chosen]


def change_scale(alpha: float | None, rank: int) -> float:
    """What B A is multiplied by: LoRA's alpha / r, and 1 where alpha is left out."""
    return 1.0 if alpha is None else alpha / rank


def _adaptable(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Every layer that low-rank factors can adapt, path -> (out, fan_in), in the model's order."""
    shapes: dict[str, tuple[int, int]] = {}
    attention: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            attention = (*attention, f"{name}.")
            if module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn:
                shapes[f"{name}.in_proj"] = (int(module.in_proj_weight.shape[0]), int(module.in_proj_weight.shape[1]))
                shapes[f"{name}.out_proj"] = (module.out_proj.out_features, module.out_proj.in_features)
        elif isinstance(module, nn.Linear) and not name.startswith(attention):
            shapes[name] = (module.out_features, module.in_features)  # a weight in 4 bits has another shape
        elif isinstance(module, nn.Conv2d) and not name.startswith(attention):
            shapes[name] = (int(module.weight.shape[0]), int(module.weight[0].numel()))
    return shapes


def _matches(name: str, pattern: str) -> bool:
    names = (name, name.rpartition(".")[0]) if name.endswith((".in_proj", ".out_proj")) else (name,)
    return any(fnmatch.fnmatchcase(candidate, form) for candidate in names for form in (pattern, f"*.{pattern}"))


def check_examples_stay_apart(model: nn.Module) -> None:
    """Refuse layers whose output for one example depends on the others of its batch.

    Batch norm is run with its stored statistics (evaluation mode), for every method. One that stores none would mix
    the examples, and in a folded batch the particles.

    Raises:
        UserError: names the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UserError(
                f"{name} ({type(module).__name__}) has no stored statistics and would mix the examples of a batch: "
                "use a backbone whose batch norm tracks them"
            )


class LowRankParticles(Particles):
    """n particles theta_0 + B_i A_i over any backbone, folded into one pass.

    Particles start apart: A_i is Kaiming-uniform (as PEFT's), B_i is 0 or N(0, initial_b_std^2), heads are drawn
    independently. Particle i draws from its own stream, so the same particle of another run starts the same.

    Args:
        model: inputs -> logits. Taken over: its parameters are frozen and the targets are replaced by adapted layers.
        num_particles: n.
        targets: patterns of layers to adapt (see `plan_adapters`); empty: only the head trains.
        rank: r.
        head: path of a linear layer that trains whole, one a particle; None: the model's head stays frozen (zero-shot).
        initial_b_std: standard deviation B_i starts with. 0 starts every particle at theta_0; the product kernel needs
            more, or all products are equal at the start.
        alpha: LoRA's: the change is (alpha / r) B_i A_i; None: alpha = r. With a higher one the changes move further than
            the heads at the same learning rate.
        seeds: one a particle, or one for all of them (each particle's own seed is then derived from it).
        chunk_size: particles computed at once (None: all).
    """

    default_learning_rate = 5e-3

    def __init__(
        self,
        model: nn.Module,
        num_particles: int,
        *,
        targets: Sequence[str],
        rank: int = 4,
        head: str | None = None,
        initial_b_std: float = 0.0,
        alpha: float | None = None,
        seeds: int | Sequence[int] = 0,
        chunk_size: int | None = None,
    ) -> None:
        if alpha is not None and alpha <= 0:
            raise UserError(f"alpha is {alpha}: above 0 (left out: the rank)")
        own_seeds = particle_seeds(seeds, num_particles)
        super().__init__(num_particles, chunk_size or num_particles, own_seeds, 1 if self.shares_rows else None)
        check_examples_stay_apart(model)
        self.adapters = plan_adapters(model, targets, rank, head=head)
        if not self.adapters and head is None:
            raise UserError("nothing would train: name targets, or a head")
        self.head = head
        self.scale = change_scale(alpha, rank)
        self.model = model.requires_grad_(False).eval()
        self._originals: dict[str, nn.Module] = {}
        self._layers: dict[str, LowRankLayer | ParticleHead] = {}
        self._inject()

        reference = next(model.parameters())
        self._allocate(self._shapes(), one_buffer=True, device=reference.device, dtype=reference.dtype)
        for index, seed in enumerate(self.seeds[: self.num_rows]):
            self._initialise(index, seed, initial_b_std)
        self._fan_out: FanOut | None = None
        self._norms: dict[str, nn.Module] = {}

    # ---- putting the adapted layers in and out ----------------------------------------------------------------------

    def _inject(self) -> None:
        for adapter in self.adapters:
            parent_name, _, child = adapter.name.rpartition(".")
            parent = self.model.get_submodule(parent_name)
            if isinstance(parent, nn.MultiheadAttention):
                self._originals[parent_name] = parent
                parent = SplitMultiheadAttention(parent)
                self.model.set_submodule(parent_name, parent)
            base = parent.get_submodule(child)
            if not isinstance(parent, SplitMultiheadAttention):
                self._originals[adapter.name] = base
            layer = _low_rank_layer(base)
            self._layers[adapter.name] = layer
            self.model.set_submodule(adapter.name, layer)
        if self.head is not None:
            original = self._originals[self.head] = linear_head(self.model, self.head)
            self._layers[self.head] = ParticleHead(original)
            self.model.set_submodule(self.head, self._layers[self.head])

    @contextmanager
    def _plain_model(self) -> Iterator[nn.Module]:
        """The model as it was given, for as long as the block lasts."""
        given = {name: module for name, module in self._norms.items() if not name.endswith(".base")} | self._originals
        injected = {name: self.model.get_submodule(name) for name in given}
        for name, original in given.items():
            self.model.set_submodule(name, original)
        try:
            yield self.model
        finally:
            for name, module in injected.items():
                self.model.set_submodule(name, module)

    def fold_norms(self, inputs: Inputs) -> None:
        """Let convolutions do the work of the frozen batch norms behind them, from now on (bella/norms.py)."""
        self._norms = fold_norms(self.model, self._layers, inputs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # .to(), .double(): what is folded away would stay behind
        unfold_norms(self.model, self._norms)
        self._norms = {}
        self._fan_out = None  # the next batch is traced anew
        return super()._apply(*args, **kwargs)

    # ---- parameters ------------------------------------------------------------------------------------------------

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Everything that trains, name -> shape."""
        shapes: dict[str, tuple[int, ...]] = {}
        for adapter in self.adapters:
            shapes[f"{adapter.name}.A"] = (adapter.rank, adapter.fan_in)
            shapes[f"{adapter.name}.B"] = (adapter.out, adapter.rank)
        return shapes if self.head is None else shapes | head_shapes(self._originals[self.head], self.head)

    @torch.no_grad()
    def _initialise(self, index: int, seed: int, initial_b_std: float) -> None:
        generator = torch.Generator().manual_seed(derive_seed(seed, "particle"))
        leaves = self.leaves(slice(index, index + 1))
        for adapter in self.adapters:
            A, B = leaves[f"{adapter.name}.A"], leaves[f"{adapter.name}.B"]
            bound = adapter.fan_in**-0.5  # Kaiming-uniform with a = sqrt(5)
            A.copy_(torch.empty(A.shape).uniform_(-bound, bound, generator=generator))
            B.copy_(torch.randn(B.shape, generator=generator) * initial_b_std)
        if self.head is not None:
            draw_head(leaves, self.head, generator)

    def factor_pairs(self) -> list[tuple[str, str]]:
        """Names (A, B) of the factors of every adapted layer."""
        return [(f"{adapter.name}.A", f"{adapter.name}.B") for adapter in self.adapters]

    # ---- computation -----------------------------------------------------------------------------------------------

    def prepare(self, inputs: Inputs, *, per_particle: bool = False) -> Any:
        """Run what comes before the fan-out, the same for all particles, once."""
        if self._fan_out is None:
            self._fan_out = FanOut.find(self.model, self._layers, inputs, per_particle=per_particle)
            self.fold_norms(map_inputs(lambda t: t[0], inputs) if per_particle else inputs)
        return self._fan_out.shared(inputs, per_particle=per_particle)

    def weights(self, rows: slice) -> Mapping[str, Tensor]:
        """What a run of k particles computes with: factors and heads (k, ...), by the names of `stacked_parameters`."""
        return self.leaves(rows)

    def chunk_logits(self, prepared: Any, rows: slice) -> Tensor:
        """Logits (k, b, C) of a run of k particles, in one folded pass."""
        return self.logits_with(self.weights(rows), prepared, rows)

    def logits_with(self, weights: Mapping[str, Tensor], prepared: Any, rows: slice) -> Tensor:
        """Logits (k, b, C) of k particles with given weights, by the names of `stacked_parameters`, on their rows of a batch."""
        assert self._fan_out is not None, "prepare() comes first"
        for name, layer in self._layers.items():
            if isinstance(layer, ParticleHead):
                layer.bind(weights[f"{name}.weight"], weights.get(f"{name}.bias"))
            else:
                B = weights[f"{name}.B"]
                layer.bind(weights[f"{name}.A"], B if self.scale == 1 else self.scale * B)
        logits = self._fan_out.folded(prepared, rows)
        return logits.view(rows.stop - rows.start, -1, *logits.shape[1:])

    @torch.no_grad()
    def merge(self, index: int) -> nn.Module:
        """A plain copy of the model with particle `index`'s weights, W + (alpha / r) B A, and its head."""
        with self._plain_model() as plain:
            merged = copy.deepcopy(plain)
        parameters = dict(merged.named_parameters())
        particle = self.weights(slice(index, index + 1))
        for adapter in self.adapters:
            name = adapter.name
            is_attention = name.endswith(".in_proj") and f"{name}_weight" in parameters
            weight = parameters[f"{name}_weight" if is_attention else f"{name}.weight"]
            if not weight.is_floating_point():
                raise UserError(f"{name} is held in 4 bits, in which a low-rank change would be lost: merge with precision=bf16")
            change = self.scale * particle[f"{name}.B"][0] @ particle[f"{name}.A"][0]
            weight.add_(change.view(weight.shape).to(weight.dtype))
        if self.head is not None:
            copy_head(particle, self.head, merged)
        return merged


def _low_rank_layer(base: nn.Module) -> LowRankLayer:
    """The adapted form of a linear layer or a convolution."""
    if isinstance(base, nn.Conv2d):
        if base.groups > 1:
            return LowRankGroupedConv2d(base)
        if is_pointwise(base):
            return LowRankPointwiseConv2d(base)
        return LowRankConv2d(base)
    assert isinstance(base, nn.Linear)
    return LowRankLinear(base)
