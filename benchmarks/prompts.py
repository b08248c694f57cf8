"""What a zero-shot head says of a class, a data set's customary templates; {} stands for its name.

CIFAR, STL-10, SVHN: `data/prompts.md` of https://github.com/openai/CLIP (Radford et al. 2021, arXiv 2103.00020). ImageNet: the 80
of that project's notebook Prompt_Engineering_for_ImageNet, as open_clip has them. CAMELYON17, DomainNet: one sentence, as is usual.
"""

from __future__ import annotations

CIFAR = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a black and white photo of a {}.",
    "a low contrast photo of a {}.",
    "a high contrast photo of a {}.",
    "a bad photo of a {}.",
    "a good photo of a {}.",
    "a photo of a small {}.",
    "a photo of a big {}.",
    "a photo of the {}.",
    "a blurry photo of the {}.",
    "a black and white photo of the {}.",
    "a low contrast photo of the {}.",
    "a high contrast photo of the {}.",
    "a bad photo of the {}.",
    "a good photo of the {}.",
    "a photo of the small {}.",
    "a photo of the big {}.",
)
STL10 = ("a photo of a {}.", "a photo of the {}.")
SVHN = ('a photo of the number: "{}".',)
CAMELYON17 = ("this is a photo of {}",)
DOMAINNET = ("a photo of a {}.",)


def imagenet() -> tuple[str, ...]:
    """The 80 templates; open_clip takes a few seconds to import."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
