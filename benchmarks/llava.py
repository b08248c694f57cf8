"""LLaVA-1.5 (Liu et al. 2023, arXiv 2310.03744) as a classifier of answers, through transformers.

transformers:llava-hf/llava-1.5-7b-hf    from the hub; transformers:/a/folder, with config.json and safetensors, likewise

An answer's logit is log p(answer | image, question): the sum over its tokens, and the token that ends it, of their
log-probabilities. All candidates are scored in one pass: their tokens, as a tree in which common beginnings stand once,
follow the question, and each sees the question and what comes before it in its own answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import UserError
from benchmarks.backbones import Backbone, Reference, Scheme, Weights, file_checksum, load_checkpoint

BEFORE_IMAGE = "USER: "
AFTER_IMAGE = "\n{}\nAnswer the question using a single word or phrase. ASSISTANT:"
"""LLaVA-1.5's own prompt for short answers, around the image and with the question in it."""

TARGETS = ("gate_proj", "up_proj", "down_proj")
"""What low-rank particles adapt: the MLPs of the language model."""

KNOWN: dict[str, dict[str, Any]] = {
    "llava-hf/llava-1.5-7b-hf": {"vocab_size": 32064},
    "llava-hf/llava-1.5-13b-hf": {
        "vocab_size": 32064,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
    },
}
"""Language models whose shapes need no hub: what differs from transformers' default."""

WHITENING = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Mean and standard deviation a channel that CLIP's image tower, LLaVA's eye, was trained with."""


@dataclass(frozen=True)
class AnswerTree:
    """Candidate answers' tokens, common beginnings once.

    Attributes:
        tokens: (M,), a token a node, parents before children.
        sees: (M, M) bool, whether a node is another's ancestor, or itself.
        depth: (M,), 1 for a first token.
        edge_from: (E,), where the prediction of an edge's token is made: 0 after the question, i + 1 at node i.
        edge_token: (E,), the token it predicts.
        edges_of: (C, E), 1 where an edge is on an answer's path, its end included.
    """

    tokens: Tensor
    sees: Tensor
    depth: Tensor
    edge_from: Tensor
    edge_token: Tensor
    edges_of: Tensor

    @classmethod
    def of(cls, answers: Sequence[Sequence[int]], end: int) -> AnswerTree:
        """The tree of answers given as tokens.

        Raises:
            UserError: an answer has no tokens, or two have the same.
        """
        nodes: dict[tuple[int, ...], int] = {}
        edges: dict[tuple[int, int], int] = {}
        paths = []
        for answer in answers:
            if not answer:
                raise UserError("a candidate answer has no tokens")
            path, at = [], 0
            for length, token in enumerate(answer, 1):
                path.append(edges.setdefault((at, token), len(edges)))
                at = nodes.setdefault(tuple(answer[:length]), len(nodes)) + 1
            path.append(edges.setdefault((at, end), len(edges)))
            paths.append(path)
        if len({path[-1] for path in paths}) != len(paths):
            raise UserError("two candidate answers have the same tokens")
        sees = torch.zeros(len(nodes), len(nodes), dtype=torch.bool)
        for prefix, node in nodes.items():
            for length in range(1, len(prefix) + 1):
                sees[node, nodes[prefix[:length]]] = True
        edges_of = torch.zeros(len(paths), len(edges))
        for answer_number, path in enumerate(paths):
            edges_of[answer_number, path] = 1.0
        return cls(
            tokens=torch.tensor([prefix[-1] for prefix in nodes]),
            sees=sees,
            depth=torch.tensor([len(prefix) for prefix in nodes]),
            edge_from=torch.tensor([start for start, _ in edges]),
            edge_token=torch.tensor([token for _, token in edges]),
            edges_of=edges_of,
        )


class AnswerScorer(nn.Module):
    """image, question -> logits of candidate answers; without candidates, the last layer's state after the question.

    Args:
        llava: transformers' `LlavaForConditionalGeneration`.
        before_image: tokens in front of the image.
    """

    before_image: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, llava: Any, before_image: Sequence[int]) -> None:
        super().__init__()
        self.llava = llava
        self.tree: AnswerTree | None = None
        self.register_buffer("before_image", torch.tensor(before_image, device=llava.device), persistent=False)
        for name, values in zip(("mean", "std"), WHITENING, strict=True):
            self.register_buffer(name, torch.tensor(values, device=llava.device).view(3, 1, 1), persistent=False)

    def set_answers(self, tree: AnswerTree) -> None:
        """Score these candidates from now on."""
        self.tree = tree

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Scores of one batch.

        Args:
            inputs: image (b, 3, S, S) in [0, 1], input_ids (b, L) int64 and attention_mask (b, L) bool, padded on the left.

        Returns:
            log-probabilities (b, C) float32, or states (b, d) where there are no candidates.
        """
        model = self.llava.model
        device = inputs["input_ids"].device
        embed = model.get_input_embeddings()
        pixels = ((inputs["image"] - self.mean) / self.std).to(embed.weight.dtype)
        seen = torch.stack(tuple(model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output))
        b = seen.shape[0]
        before = embed(self.before_image).expand(b, -1, -1)
        parts = [before, seen.to(before.dtype), embed(inputs["input_ids"])]
        # Left padding lies between image and question: every prompt ends at the same place.
        prompt = torch.cat([inputs["attention_mask"].new_ones(b, before.shape[1] + seen.shape[1]), inputs["attention_mask"]], 1)
        positions = (prompt.cumsum(1) - 1).clamp_min(0)
        length = prompt.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        sees = prompt[:, None, :] & causal
        if self.tree is None:
            states = self._run(torch.cat(parts, 1), sees, positions)
            return states[:, -1]
        tree = self.tree
        nodes = len(tree.tokens)
        parts.append(embed(tree.tokens.to(device)).expand(b, -1, -1))
        positions = torch.cat([positions, positions[:, -1:] + tree.depth.to(device)], 1)
        of_question = prompt[:, None, :].expand(b, nodes, length)
        of_answers = tree.sees.to(device).expand(b, nodes, nodes)
        sees = torch.cat(
            [
                torch.cat([sees, sees.new_zeros(b, length, nodes)], 2),
                torch.cat([of_question, of_answers], 2),
            ],
            1,
        )
        states = self._run(torch.cat(parts, 1), sees, positions)
        logits = self.llava.lm_head(states[:, length - 1 :]).float()
        log_probabilities = (
            logits[:, tree.edge_from.to(device), tree.edge_token.to(device)] - logits.logsumexp(-1)[:, tree.edge_from.to(device)]
        )
        return log_probabilities @ tree.edges_of.to(device).T

    def _run(self, embedded: Tensor, sees: Tensor, positions: Tensor) -> Tensor:
        # A token that sees nothing (padding) sees itself, or its softmax is 0 / 0.
        diagonal = torch.eye(sees.shape[-1], dtype=torch.bool, device=sees.device)
        found = self.llava.model.language_model(
            inputs_embeds=embedded, attention_mask=(sees | diagonal)[:, None], position_ids=positions, use_cache=False
        )
        return found.last_hidden_state


class Transformers(Scheme):
    """LLaVA-1.5 models from the hub or from a folder."""

    paths = True

    def known_as(self, reference: Reference) -> Weights:
        """The hub's weights, or those of a local folder, by their checksums."""
        folder = Path(reference.model).expanduser()
        if folder.is_dir():
            files = sorted(folder.glob("*.safetensors"))
            if not files:
                raise UserError(f"{reference.name}: {folder} holds no .safetensors file")
            return Weights(f"weights from folder {folder.name}", "+".join(file_checksum(file) for file in files))
        return Weights(f"weights {reference.model}", f"transformers:{reference.model}")

    def build(self, reference: Reference, *, image_size: int | None, load: bool, device: str) -> Backbone:
        """The model without candidates; its zero-shot head gives it those."""
        try:
            from transformers import LlavaForConditionalGeneration
            from transformers.utils import logging
        except ImportError as error:
            raise UserError(f"{reference.name} needs transformers: pip install 'bella-bench[llava]'") from error
        logging.disable_progress_bar()  # the harness has its own
        config = _config(reference)
        own_size = config.vision_config.image_size
        if image_size is not None and image_size != own_size:
            raise UserError(f"{reference.name} takes images of {own_size} px, not {image_size}: --set image_size={own_size}")
        if load and not reference.random and reference.checkpoint is None:
            try:
                model = LlavaForConditionalGeneration.from_pretrained(
                    reference.model, dtype=_dtype(reference), use_safetensors=True, attn_implementation="sdpa"
                )
            except (OSError, ValueError, RuntimeError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
                raise UserError(
                    f"{reference.name} cannot be built ({reason}); without a connection to the hub give a folder "
                    "(transformers:/path/to/llava), ?checkpoint=FILE.safetensors, or ?random"
                ) from error
        else:
            config._attn_implementation = "sdpa"
            previous = torch.get_default_dtype()
            torch.set_default_dtype(_dtype(reference))  # 7 G numbers in float32 would not fit where bf16 does
            try:
                with torch.device(device):
                    model = LlavaForConditionalGeneration(config)
            finally:
                torch.set_default_dtype(previous)
            if load and reference.checkpoint is not None:
                load_checkpoint(model, reference.checkpoint)
        words = _Words(reference)
        scorer = AnswerScorer(model, words.before_image() if load else [config.text_config.bos_token_id or 1] * 4)

        def zero_shot(answers: Sequence[str], templates: Sequence[str]) -> nn.Module:
            scorer.set_answers(AnswerTree.of([words.answer(templates[0].format(answer)) for answer in answers], words.end))
            return nn.Identity()

        return Backbone(scorer, int(config.text_config.hidden_size), (), (), TARGETS, zero_shot=zero_shot, tokenize=words.questions)


class _Words:
    """The model's own tokenizer, loaded when first used: shapes and costs need none."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self._loaded: Any = None

    @property
    def _tokenizer(self) -> Any:
        if self._loaded is None:
            from transformers import AutoTokenizer

            try:
                self._loaded = AutoTokenizer.from_pretrained(self._reference.model, trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise UserError(
                    f"{self._reference.name}: no tokenizer for {self._reference.model}: it comes from the hub, or from a folder "
                    "(transformers:/path/to/llava) with tokenizer.json"
                ) from error
        return self._loaded

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return int(self._tokenizer.eos_token_id)

    def before_image(self) -> list[int]:
        """The prompt in front of the image, with the token that begins a text."""
        words = self._tokenizer(BEFORE_IMAGE.strip(), add_special_tokens=False).input_ids
        begin = self._tokenizer.bos_token_id
        return [*([] if begin is None else [begin]), *words]

    def questions(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Questions in the rest of the prompt, padded on the left."""
        tokens = [self._tokenizer(AFTER_IMAGE.format(text), add_special_tokens=False).input_ids for text in texts]
        length = max(map(len, tokens))
        padding = self._tokenizer.pad_token_id or 0
        ids = torch.tensor([[padding] * (length - len(own)) + own for own in tokens])
        mask = torch.tensor([[False] * (length - len(own)) + [True] * len(own) for own in tokens])
        return ids, mask

    def answer(self, text: str) -> list[int]:
        """An answer as it follows the prompt; with a capital, as in the short answers LLaVA-1.5 has learned from."""
        text = text[:1].upper() + text[1:]
        stem = AFTER_IMAGE.rpartition(" ")[2]
        before = self._tokenizer(stem, add_special_tokens=False).input_ids
        whole = self._tokenizer(f"{stem} {text}", add_special_tokens=False).input_ids
        if whole[: len(before)] != before:
            raise UserError(f"{self._reference.name}: its tokenizer joins the answer {text!r} with the prompt")
        return list(whole[len(before) :])


def _dtype(reference: Reference) -> torch.dtype:
    return torch.float32 if reference.precision is None else torch.bfloat16


def _config(reference: Reference) -> Any:
    """The model's shapes: known, from its folder, or from what is cached of the hub; the hub itself is asked last."""
    from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig

    if reference.model in KNOWN:
        vision = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        )
        text = LlamaConfig(max_position_embeddings=4096, rms_norm_eps=1e-5, **KNOWN[reference.model])
        return LlavaConfig(vision_config=vision, text_config=text)
    try:
        config = AutoConfig.from_pretrained(reference.model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        known = ", ".join(KNOWN)
        raise UserError(
            f"{reference.name}: no configuration of {reference.model!r} here or on the hub; known without a connection: {known}"
        ) from error
    if config.model_type != "llava":
        raise UserError(f"{reference.name} is a model of type {config.model_type!r}; transformers: takes those of type 'llava'")
    return config
