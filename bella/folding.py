"""Where a pass over one batch becomes a pass over n particles.

Everything in front of the first adapted layer is the same for all particles: it runs once, on b examples. At the
*fan-out* the batch is repeated particle-major to n*b. The unmodified forward of the model does the rest.

The fan-out is found by trial. Candidates are the modules that contain the first adapted layer, innermost first; one is
right if a folded pass equals the particles computed one by one. Inside a residual branch the skip path would still hold
b examples, and three of them do not broadcast against six, so such a candidate fails. The same trial catches a layer
that mixes examples, a token-first layout, and a target whose weight is read without calling it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from bella.errors import UserError
from bella.layers import LowRankLayer, ParticleHead
from bella.particles import Inputs, batch_length, map_inputs

_PROBE_EXAMPLES = 3  # not a multiple of the probe's two particles: nothing broadcasts by accident
_PROBE_PARTICLES = 2


class _ReachedFanOut(Exception):  # noqa: N818 - it stops a pass, it is no error
    """The pass has come to the fan-out; carries what the module there was called with."""


@dataclass
class Shared:
    """What all particles have in common of one batch: the inputs, and what the module at the fan-out is called with."""

    inputs: Inputs
    per_particle: bool
    arguments: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    outputs: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class FanOut:
    """A model with the place where its batch is repeated for every particle.

    Attributes:
        model: the model with adapted layers.
        path: the module whose input is repeated; None: the model's own input.
        before: the outermost modules that run before it.
    """

    model: nn.Module
    path: str | None
    before: tuple[str, ...] = ()

    @classmethod
    def find(
        cls, model: nn.Module, layers: Mapping[str, LowRankLayer | ParticleHead], inputs: Inputs, *, per_particle: bool
    ) -> FanOut:
        """The innermost place that is right, tried on random inputs shaped like the given batch.

        Raises:
            UserError: an adapted layer is not called in a pass, or no place gives what one particle at a time gives.
        """
        probe = random_inputs(map_inputs(lambda t: t[0], inputs) if per_particle else inputs)
        with torch.no_grad():
            factors = random_factors(layers, _PROBE_PARTICLES)
            for layer in layers.values():
                layer.calls = 0
            order: list[str] = []
            alone = []
            for i in range(_PROBE_PARTICLES):
                _bind(layers, factors, slice(i, i + 1))
                with _call_order(model, order if i == 0 else []):
                    alone.append(model(probe))
            _check_called(model, layers)
            expected = torch.cat(alone)
            _bind(layers, factors, slice(0, _PROBE_PARTICLES))
            for path in _candidates(order, layers):
                fan_out = cls(model, path, _modules_before(order, path))
                if fan_out._gives(expected, probe):
                    return fan_out
            fan_out = cls(model, None)
            if fan_out._gives(expected, probe):
                return fan_out
        raise UserError(
            f"{type(model).__name__} cannot be folded: a batch of several particles does not give what one particle at a "
            "time gives (a layer mixes the examples of a batch, or its batch axis is not the first); adapt other layers, "
            "or another backbone"
        )

    def _gives(self, expected: Tensor, probe: Inputs) -> bool:
        try:
            found = self.folded(self.shared(probe, per_particle=False), slice(0, _PROBE_PARTICLES))
        except (RuntimeError, ValueError, IndexError, AssertionError):  # shapes that do not fit: not the place
            return False
        exact = {p.dtype for p in self.model.parameters()} <= {torch.float32, torch.float64}
        return agree(found, expected, 1e-4 if exact else 5e-2)

    def shared(self, inputs: Inputs, *, per_particle: bool) -> Shared:
        """Run one batch up to the fan-out. With examples of their own, particles share nothing."""
        shared = Shared(inputs, per_particle)
        if per_particle or self.path is None:
            return shared

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _ReachedFanOut(args, kwargs)

        def note(name: str) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
                shared.outputs.setdefault(name, []).append(tree_map_only(Tensor, _stand_in, output))

            return hook

        hooks = [self.model.get_submodule(name).register_forward_hook(note(name)) for name in self.before]
        hooks.append(self.model.get_submodule(self.path).register_forward_pre_hook(stop, with_kwargs=True))
        try:
            self.model(inputs)
        except _ReachedFanOut as reached:
            shared.arguments = reached.args
        finally:
            for hook in hooks:
                hook.remove()
        return shared

    def folded(self, shared: Shared, rows: slice) -> Tensor:
        """Logits (k*b, ...) of k particles, whose factors are bound, from what they share."""
        k = rows.stop - rows.start
        if shared.per_particle:
            return self.model(map_inputs(lambda t: t[rows].flatten(0, 1), shared.inputs))
        b = batch_length(shared.inputs)
        if self.path is None or shared.arguments is None:
            return self.model(map_inputs(lambda t: _repeat(t, b, k), shared.inputs))
        arguments = tree_map_only(Tensor, lambda t: _repeat(t, b, k), shared.arguments)
        with _replayed(self.model, self.path, shared.outputs, arguments):
            return self.model(shared.inputs)


@contextmanager
def _replayed(model: nn.Module, path: str, outputs: dict[str, list[Any]], arguments: Any) -> Iterator[None]:
    """Skip the modules in front of the fan-out (they return stand-ins of the right shape), then call it with `arguments`."""
    skipped = [model.get_submodule(name) for name in outputs]

    def stop_skipping() -> None:
        for module in skipped:
            module.__dict__.pop("forward", None)

    def fan_out(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        stop_skipping()
        return arguments

    for module, recorded in zip(skipped, outputs.values(), strict=True):
        replay = iter(recorded)
        module.forward = lambda *args, replay=replay, **kwargs: next(replay)
    hook = model.get_submodule(path).register_forward_pre_hook(fan_out, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        stop_skipping()


def _stand_in(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that takes no memory; its values are never used."""
    return tensor.new_zeros(()).expand(tensor.shape)


def _repeat(tensor: Tensor, b: int, k: int) -> Tensor:
    """(b, ...) -> (k*b, ...), particle-major; what has no batch axis stays. `cat` keeps the memory format."""
    if k == 1 or tensor.dim() == 0 or tensor.shape[0] != b:
        return tensor
    return torch.cat([tensor] * k)


# ---- the trial -----------------------------------------------------------------------------------------------------


def agree(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    """Whether two passes gave the same numbers, to a share of the largest; more is allowed where autocast rounds to 16 bits."""
    if torch.is_autocast_enabled(found.device.type):
        tolerance = 5e-2
    return found.shape == expected.shape and float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def random_inputs(inputs: Inputs) -> Inputs:
    """Three random examples of the kind a batch holds, always the same."""
    generator = torch.Generator().manual_seed(0)
    return map_inputs(lambda t: _random_like(t, generator), inputs)


def random_factors(layers: Mapping[str, LowRankLayer | ParticleHead], count: int) -> dict[str, tuple[Tensor | None, ...]]:
    """Random factors of rank 1, and heads, for so many particles; always the same."""
    generator = torch.Generator().manual_seed(1)
    return {name: _random_factors(layer, count, generator) for name, layer in layers.items()}


def bind_random(layers: Mapping[str, LowRankLayer | ParticleHead]) -> None:
    """Give a pass of one particle random factors."""
    _bind(layers, random_factors(layers, 1), slice(0, 1))


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Three random examples of the kind a batch (b, ...) holds."""
    shape = (_PROBE_EXAMPLES, *tensor.shape[1:])
    if tensor.is_meta:
        return tensor.new_empty(shape)
    if tensor.dtype == torch.bool:
        return tensor[:1].expand(shape)
    if tensor.is_floating_point():
        return torch.rand(shape, generator=generator).to(tensor)
    return torch.randint(int(tensor.max()) + 1, shape, generator=generator).to(tensor)


def _random_factors(layer: LowRankLayer | ParticleHead, count: int, generator: torch.Generator) -> tuple[Tensor | None, ...]:
    weight: Tensor = layer.base.weight
    dtype = weight.dtype if weight.is_floating_point() else torch.float32  # in 4 bits: two numbers a byte

    def draw(*shape: int) -> Tensor:
        drawn = torch.randn(count, *shape, generator=generator) * shape[-1] ** -0.5
        return drawn.to(weight.device, dtype)

    if isinstance(layer, ParticleHead):
        return draw(*weight.shape), None if layer.base.bias is None else draw(weight.shape[0])
    if isinstance(layer.base, nn.Linear):
        out, fan_in = layer.base.out_features, layer.base.in_features
    else:
        out, fan_in = weight.shape[0], weight[0].numel()
    return draw(1, fan_in), draw(out, 1) * 0.3


def _bind(layers: Mapping[str, LowRankLayer | ParticleHead], factors: Mapping[str, tuple[Tensor | None, ...]], rows: slice) -> None:
    for name, layer in layers.items():
        layer.bind(*(None if factor is None else factor[rows] for factor in factors[name]))  # type: ignore[arg-type]


@contextmanager
def _call_order(model: nn.Module, order: list[str]) -> Iterator[None]:
    """Note the path of every module as it is called."""

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            order.append(name)

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in model.named_modules() if name]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_called(model: nn.Module, layers: Mapping[str, LowRankLayer | ParticleHead]) -> None:
    for name, layer in layers.items():
        if not layer.calls:
            parent = model.get_submodule(name.rpartition(".")[0])
            raise UserError(
                f"targets: {name} is never called in a pass, so adapting it would do nothing "
                f"({type(parent).__name__} reads its weight itself, or does not use it): leave it out of the targets"
            )


def _candidates(order: list[str], layers: Mapping[str, Any]) -> Iterator[str]:
    """The first adapted layer that is called and what contains it, innermost first; only what is called once a pass."""
    path = next(name for name in order if name in layers)
    while path:
        if order.count(path) == 1:
            yield path
        path = path.rpartition(".")[0]


def _modules_before(order: list[str], path: str) -> tuple[str, ...]:
    """The outermost modules called before `path`: not within another of them, and not around `path`."""
    before = list(dict.fromkeys(order[: order.index(path)]))
    apart = [name for name in before if not path.startswith(f"{name}.")]
    return tuple(name for name in apart if not any(name.startswith(f"{other}.") for other in apart))
