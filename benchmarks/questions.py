"""Splits of questions about images. The words become tokens when a backbone is known: each has its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from bella.errors import UserError
from benchmarks.backbones import Tokenize
from benchmarks.images import decode
from benchmarks.problem import Data


@dataclass
class Questions:
    """One split: images are held, or read, once, however many questions ask about them.

    Attributes:
        images: (M, S, S, 3) uint8, or the M files to decode for every batch.
        image_of: (N,), which image a question asks about.
        texts: N questions.
        targets: (N,) int64.
        ids: N names.
        groups: N types of question.
        image_size: S.
        human_answers: (N, H) int64, where H people answered: class indices, and below 0 what is no class, equal numbers for
            equal answers to one question; None: one answer a question is known.
    """

    images: Tensor | Sequence[Path]
    image_of: Tensor
    texts: list[str]
    targets: Tensor
    ids: list[str]
    groups: list[str]
    image_size: int
    human_answers: Tensor | None = None
    _tokens: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    _tokenized_for: str | None = field(default=None, repr=False)

    def __len__(self) -> int:
        """N."""
        return len(self.ids)

    def tokenize_with(self, tokenize: Tokenize, backbone: str) -> None:
        """Turn the texts into a backbone's tokens, unless they are that already."""
        if self._tokenized_for != backbone:
            self._tokens = tokenize(self.texts)
            self._tokenized_for = backbone

    def inputs(self, indices: Tensor, device: torch.device) -> dict[str, Tensor]:
        """image (b, 3, S, S) in [0, 1], input_ids (b, L) int64 and attention_mask (b, L) bool."""
        if self._tokens is None:
            raise RuntimeError("tokenize_with() comes first: a backbone's own tokenizer makes the tokens")
        places = self.image_of[indices]
        if isinstance(self.images, Tensor):
            pixels = self.images[places]
        else:
            pixels = decode([self.images[i] for i in places.tolist()], self.image_size)
        ids, mask = (tensor[indices].to(device, non_blocking=True) for tensor in self._tokens)
        image = pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
        return {"image": image, "input_ids": ids, "attention_mask": mask}


def tokenize_questions(data: Data, tokenize: Tokenize | None, backbone: str) -> None:
    """Give every split of questions a backbone's tokens.

    Raises:
        UserError: the backbone takes no questions and the data ask some, or the other way round.
    """
    for split in (data.training, data.validation, data.test, *data.further.values()):
        if isinstance(split, Questions) != (tokenize is not None):
            raise UserError(
                f"{backbone} takes {'no questions' if tokenize is None else 'questions about images'}, and these data have "
                f"{'some' if tokenize is None else 'images alone'}: name a backbone that fits them (--set backbone=NAME)"
            )
        if isinstance(split, Questions) and tokenize is not None:
            split.tokenize_with(tokenize, backbone)
