"""The registered methods: a parameterisation times an inference rule.

The four methods of the paper are a 2 x 2; a further method is one more `Method`, with at most one new file for a new
parameterisation (a `Particles`) or a new inference rule (an `Inference`). What either takes as keyword arguments becomes
a setting of the method, typed by its annotation: there is no second list of options to keep.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bella.inference import Inference
from bella.particles import Particles
from bella.registry import load_target

_PROVIDED = {"self", "model", "num_particles", "head", "seeds", "chunk_size"}
"""Arguments that the harness gives to every parameterisation, from the backbone and the run."""


@dataclass(frozen=True)
class Option:
    """A setting that a parameterisation or an inference rule takes: its type, and its default (`inspect._empty`: none)."""

    annotation: Any
    default: Any


@dataclass(frozen=True)
class Method:
    """One registered method.

    Attributes:
        parameterisation: "module:attribute" of a `Particles` class: what a particle is.
        inference: "module:attribute" of an `Inference` class: how gradients move the particles.
        fixed: settings that this method has whatever a suite says (`particles: 1` for a single network).
        defaults: settings that differ from the parameterisation's or inference rule's own.
        revision: raised when the method's numbers change, so that stored runs of it are done again.
    """

    parameterisation: str
    inference: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    revision: int = 1

    def particle_options(self) -> dict[str, Option]:
        """What the parameterisation can be told."""
        return _options(load_target(self.parameterisation))

    def inference_options(self) -> dict[str, Option]:
        """What the inference rule can be told."""
        return _options(load_target(self.inference))

    def particles(self, *args: Any, **kwargs: Any) -> Particles:
        """Make the particles."""
        return load_target(self.parameterisation)(*args, **kwargs)

    def rule(self, **options: Any) -> Inference:
        """Make the inference rule."""
        return load_target(self.inference)(**options)

    @property
    def splits(self) -> bool:
        """Whether the particles of a training can be split over processes: each is trained, has parameters of its own, and meets
        the others in nothing but its parameters and gradients."""
        rule = load_target(self.inference)
        return not (self.shares_rows or rule.draws or rule.pushes_predictions)

    @property
    def shares_rows(self) -> bool:
        """Whether particles share what trains."""
        return load_target(self.parameterisation).shares_rows

    @property
    def default_learning_rate(self) -> float:
        """The parameterisation's own."""
        return load_target(self.parameterisation).default_learning_rate


def _options(made: type) -> dict[str, Option]:
    """Keyword arguments of a class; those of its base as well where it hands on what it does not know (`**others`)."""
    found: dict[str, Option] = {}
    for one in made.__mro__:
        if "__init__" not in vars(one) or one is object:
            continue
        hints = typing.get_type_hints(one.__init__)  # type: ignore[misc]
        parameters = inspect.signature(one).parameters
        kinds = {p.kind for p in parameters.values()}
        own = {name: Option(hints[name], p.default) for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
        found = {name: option for name, option in own.items() if name not in _PROVIDED} | found
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            break
    return found


FULL_RANK = "baselines.full_rank:FullRankParticles"
LOW_RANK = "bella.lowrank:LowRankParticles"
INDEPENDENT = "bella.inference:Independent"
STEIN = "bella.svgd:SVGD"
RELEASED = "baselines.released_svgd:ReleasedSVGD"

SINGLE = Method(FULL_RANK, INDEPENDENT, fixed={"particles": 1}, revision=3)
ENSEMBLE = Method(FULL_RANK, INDEPENDENT, revision=3)
SVGD = Method(FULL_RANK, STEIN, revision=3)
BELLA_SINGLE = Method(LOW_RANK, INDEPENDENT, fixed={"particles": 1}, revision=3)
BELLA_ENSEMBLE = Method(LOW_RANK, INDEPENDENT, revision=3)
BELLA_SVGD = Method(LOW_RANK, STEIN, revision=3)
BELLA_SVGD_RELEASED = Method(LOW_RANK, RELEASED, revision=2)

# Variants of Bella, and its rivals: a file each in baselines/.
BELLA_SVGD_PRODUCTS = Method(LOW_RANK, STEIN, defaults={"kernel": "products", "initial_b_std": 1e-3}, revision=3)
BELLA_SVGD_LAYERWISE = Method(LOW_RANK, "baselines.layerwise_svgd:LayerwiseSVGD")
BELLA_SVGD_ANNEALED = Method(LOW_RANK, "baselines.annealed_svgd:AnnealedSVGD")
BELLA_FUNCTION_REPULSION = Method(LOW_RANK, "baselines.function_repulsion:FunctionRepulsion")
BELLA_VARIATIONAL = Method("baselines.variational:VariationalLowRankParticles", INDEPENDENT)
BELLA_LAPLACE = Method("baselines.laplace:LinearisedLowRankParticles", "baselines.laplace:LowRankLaplace", revision=2)
BELLA_DROPOUT = Method("baselines.mc_dropout:DropoutLowRankParticles", INDEPENDENT)
BELLA_SWAG = Method(LOW_RANK, "baselines.swag:SWAG")
DROPOUT = Method("baselines.mc_dropout:DropoutParticles", INDEPENDENT)
LAST_LAYER_LAPLACE = Method("baselines.laplace:ManyHeadsParticles", "baselines.laplace:LastLayerLaplace", revision=2)
SWAG = Method(FULL_RANK, "baselines.swag:SWAG")
MULTI_SWAG = Method(FULL_RANK, "baselines.swag:SWAG", defaults={"trajectories": 3})
BATCH_ENSEMBLE = Method("baselines.batch_ensemble:BatchEnsembleParticles", INDEPENDENT)
