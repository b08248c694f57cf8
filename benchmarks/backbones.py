"""theta_0 by name: a backbone is a name that resolves to weights, normalisation and sizes together.

packaged:efficientnet_lite0                        weights from a package of the index
timm:vit_tiny_patch16_224[.TAG]                    weights from the hub
open_clip:ViT-B-32/laion2b_s34b_b79k               the image tower
transformers:llava-hf/llava-1.5-7b-hf              LLaVA-1.5, for questions about images
NAME?checkpoint=FILE.safetensors                   weights from a local file
NAME?random                                        none
NAME?precision=bf16                                theta_0 held in bf16, or in 4 bits; joined with others by &
"""

from __future__ import annotations

import copy
import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.checkpoint import load_tensors
from bella.errors import UserError, suggest
from bella.particles import Inputs, derive_seed
from benchmarks.precision import set_precision
from benchmarks.registries import BACKBONES

TARGET_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("c_fc", "c_proj"),  # open_clip transformers: the paper's choice
    ("fc1", "fc2"),  # timm transformers, ConvNeXt, Mixer: their MLPs
    ("conv_pw", "conv_pwl", "conv_head"),  # EfficientNet, MobileNet: the 1x1 convolutions
    ("layer*.conv1", "layer*.conv2", "layer*.conv3"),  # ResNet
    ("*",),
)
"""Default targets: the first family of which a backbone has the first pattern, less the patterns it does not have."""


Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]

PRECISIONS = ("bf16", "4bit")
"""What theta_0 can be held in beside float32; what trains is float32 in any case."""


@dataclass(frozen=True)
class Reference:
    """A backbone's name, taken apart."""

    name: str
    scheme: str
    model: str
    tag: str | None
    checkpoint: Path | None
    random: bool
    precision: str | None = None


@dataclass(frozen=True)
class Weights:
    """Which weights theta_0 has: a line for captions, and what identifies them in a run's hash."""

    description: str
    checksum: str


@dataclass
class Backbone:
    """theta_0 without a head.

    Attributes:
        model: images (b, 3, S, S), normalised -> features (b, F).
        features: F.
        mean: of the normalisation, a channel; empty where the model normalises itself.
        std: likewise.
        targets: what low-rank particles adapt unless told otherwise.
        zero_shot: class names and templates to a frozen head; None: this backbone knows no text.
        tokenize: questions to token ids (N, L) int64 and their mask (N, L) bool; None: it takes no questions.
        plain: path of the library's own model inside `model`; empty: it is that.
        classifier: what the library calls a linear head of that model; None: it has none.
    """

    model: nn.Module
    features: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    targets: tuple[str, ...]
    zero_shot: Callable[[Sequence[str], Sequence[str]], nn.Module] | None = None
    tokenize: Tokenize | None = None
    plain: str = ""
    classifier: str | None = None

    def plain_model(self, classes: int | None = None) -> nn.Module:
        """The library's own model; with a linear head for so many classes where the library has a name for it."""
        model = self.model.get_submodule(self.plain) if self.plain else self.model
        if classes is not None and self.classifier is not None:
            model = copy.deepcopy(model)
            model.set_submodule(self.classifier, nn.Linear(self.features, classes, device="meta"))
        return model


class Scheme(ABC):
    """A family of backbones, by the word before the colon.

    Class attributes: `tagged`, whether names end in /TAG, for weights; `paths`, whether a name is a path (a hub's
    repository, or a folder).
    """

    tagged: bool = False
    paths: bool = False

    @abstractmethod
    def known_as(self, reference: Reference) -> Weights:
        """Which weights a name stands for, without loading them.

        Raises:
            UserError: the model is unknown, or no weights are named.
        """

    @abstractmethod
    def build(self, reference: Reference, *, image_size: int | None, load: bool, device: str) -> Backbone:
        """Make the backbone; with `load=False` its architecture only (device "meta" for shapes without memory)."""

    def weights(self, reference: Reference) -> Weights:
        """Which weights a name stands for, and in what precision."""
        found = self._full_weights(reference)
        if reference.precision is None:
            return found
        return Weights(f"{found.description} in {reference.precision}", f"{found.checksum}+{reference.precision}")

    def _full_weights(self, reference: Reference) -> Weights:
        """A local file's, none, or the scheme's own."""
        if reference.random:
            return Weights("random weights", "random")
        if reference.checkpoint is not None:
            if not reference.checkpoint.is_file():
                raise UserError(f"{reference.name}: no such file: {reference.checkpoint}")
            return Weights(f"weights from {reference.checkpoint.name}", file_checksum(reference.checkpoint))
        return self.known_as(reference)


class Normalise(nn.Module):
    """(x - mean) / std a channel: inside the model, so that what a problem gives and an attack changes are pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (b, 3, S, S) in [0, 1] to what the backbone was trained on."""
        return (x - self.mean) / self.std


class ZeroShotHead(nn.Module):
    """A frozen linear classifier of normalised features: scale * f / |f| . class embedding."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, features: Tensor) -> Tensor:
        """Features (b, F) to logits (b, C)."""
        return F.normalize(features.to(self.weight.dtype), dim=-1) @ self.weight.T


class ImageClassifier(nn.Module):
    """theta_0 with a head: pixels (b, 3, S, S) in [0, 1] -> logits (b, C); where the backbone takes more, a dict with them."""

    def __init__(self, backbone: Backbone, head: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.normalise = Normalise(backbone.mean, backbone.std) if backbone.mean else nn.Identity()
        self.backbone = backbone.model
        self.head = head
        self.tokenize = backbone.tokenize
        self._dtype = dtype

    def forward(self, x: Inputs) -> Tensor:
        """Logits (b, C)."""
        x = self.normalise(x)
        if isinstance(x, Tensor) and x.dtype != self._dtype and self._dtype != torch.float32:
            x = x.to(self._dtype)
        return self.head(self.backbone(x))


def parse(name: str) -> tuple[Scheme, Reference]:
    """A backbone's name, taken apart, with the scheme that builds it.

    Raises:
        UserError: the scheme or a suffix is unknown.
    """
    if name.startswith("image="):
        from benchmarks.question_backbones import Pair

        return Pair(), Reference(name, "pair", name, None, None, False)
    path, _, suffix = name.partition("?")
    scheme_name, colon, model = path.partition(":")
    if not colon or not model:
        raise UserError(f"backbone {name!r}: write SCHEME:MODEL, with SCHEME one of {', '.join(BACKBONES.names())}")
    scheme = BACKBONES.resolve(scheme_name)()
    said: dict[str, str] = {}
    for word in suffix.split("&") if suffix else ():
        key, _, value = word.partition("=")
        if key not in ("random", "checkpoint", "precision") or (key != "random") != bool(value) or key in said:
            raise UserError(f"backbone {name!r}: after ? comes `random`, `checkpoint=FILE.safetensors` or `precision=bf16`")
        said[key] = value
    if "random" in said and "checkpoint" in said:
        raise UserError(f"backbone {name!r}: either `random` or `checkpoint`")
    precision = said.get("precision")
    if precision is not None and precision not in PRECISIONS:
        raise UserError(f"backbone {name!r}: unknown precision {precision!r}: {suggest(precision, PRECISIONS)}")
    tag = ""
    if not scheme.paths:
        model, _, tag = model.partition("/")
    if tag and not scheme.tagged:
        raise UserError(f"backbone {name!r}: {scheme_name} names take no /TAG: leave out {'/' + tag!r}")
    checkpoint = Path(said["checkpoint"]).expanduser() if "checkpoint" in said else None
    return scheme, Reference(name, scheme_name, model, tag or None, checkpoint, "random" in said, precision)


def build_classifier(
    name: str, *, class_names: Sequence[str], image_size: int, head: str, templates: Sequence[str]
) -> ImageClassifier:
    """theta_0 of a run: backbone and head, the same for every method and seed.

    Args:
        name: the backbone's.
        class_names: C of them.
        image_size: S.
        head: "trained" (drawn anew for each particle) or "zero-shot" (frozen, from the text tower).
        templates: what a zero-shot head says of a class, with {} for its name; embeddings are averaged over them.
    """
    scheme, reference = parse(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("theta_0", name))
        backbone = scheme.build(reference, image_size=image_size, load=True, device="cpu")
        if head == "trained":
            made: nn.Module = nn.Linear(backbone.features, len(class_names))
        elif backbone.zero_shot is None:
            raise UserError(f"{name} has no text tower: head=zero-shot needs an open_clip or transformers backbone")
        else:
            made = backbone.zero_shot(class_names, templates)
    return assemble(backbone, made, reference.precision)


def assemble(backbone: Backbone, head: nn.Module, precision: str | None) -> ImageClassifier:
    """Backbone and head as one model, theta_0 in the precision that was asked for."""
    if precision is not None:
        set_precision(backbone.model, precision)
    model = ImageClassifier(backbone, head, torch.float32 if precision is None else torch.bfloat16)
    # Convolutions run up to three times faster on channels-last images; for other layers it changes nothing.
    return model.to(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=8)
def architecture(name: str) -> Backbone:
    """A backbone's layers and shapes, without weights and without memory for them."""
    scheme, reference = parse(name)
    return scheme.build(reference, image_size=None, load=False, device="meta")


def default_targets(model: nn.Module) -> tuple[str, ...]:
    """What low-rank particles adapt in a backbone of this family."""
    from bella.lowrank import plan_adapters

    def found(pattern: str) -> bool:
        try:
            return bool(plan_adapters(model, [pattern], 1))
        except UserError:
            return False

    family = next((family for family in TARGET_FAMILIES if found(family[0])), ())
    return tuple(pattern for pattern in family if found(pattern))


def load_checkpoint(model: nn.Module, file: Path, *, drop: Sequence[str] = (), prefix: str = "") -> None:
    """Load a local safetensors file into a model.

    Args:
        model: whose names the file has.
        file: the file.
        drop: names in the file that the model does without (a classifier).
        prefix: the file may hold only what stands under it, with or without it.

    Raises:
        UserError: the file is damaged, or of another architecture.
    """
    tensors = {name: tensor for name, tensor in load_tensors(file).items() if name not in drop}
    target: nn.Module = model
    if prefix and not any(name.startswith(prefix) for name in tensors):
        target = model.get_submodule(prefix.rstrip("."))
    own = target.state_dict()
    for name in [*own, *tensors]:
        here = tuple(own[name].shape) if name in own else "nothing"
        there = tuple(tensors[name].shape) if name in tensors else "nothing"
        if here != there:
            raise UserError(
                f"{file}: weights of another architecture: {name} is {there} in the file and {here} in {type(model).__name__}"
            )
    target.load_state_dict(tensors)


def file_checksum(file: Path) -> str:
    """SHA-256 of a file, 16 hexadecimal digits of it."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]
