"""Adversarial attacks on the averaged prediction, through torchattacks: what it attacks, and images broken so far.

An attack sees logsumexp_i(log_softmax(logits_i)) - log n, whose cross-entropy is the NLL of the averaged prediction;
log(mean softmax) would lose the gradient where probabilities round to 0. Pixels are in [0, 1]; normalisation is inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bella.errors import UserError, suggest
from bella.particles import Particles, derive_seed
from bella.predictive import log_predictive


class AveragedClassifier(nn.Module):
    """Particles as one classifier: pixels (b, 3, S, S) in [0, 1] -> log probabilities (b, C) of the averaged prediction."""

    def __init__(self, particles: Particles, average: str, rows: slice | None = None) -> None:
        """Of all particles, or of a run of them: one for an attack that is to transfer to the others."""
        super().__init__()
        self.particles = particles
        self.average = average
        self.rows = rows
        self.eval()  # torchattacks puts a model back into the mode it found, and training mode would move batch norm

    def forward(self, x: Tensor) -> Tensor:
        """Log probabilities, differentiable in the pixels."""
        if self.rows is None:
            return log_predictive(self.particles(x), self.average)
        return log_predictive(self.particles.chunk_logits(self.particles.prepare(x), self.rows), self.average)


def fgsm(model: nn.Module, epsilon: float, steps: int, classes: int) -> Any:
    """One step along the gradient's sign (Goodfellow et al. 2015, arXiv 1412.6572)."""
    import torchattacks

    return torchattacks.FGSM(model, eps=epsilon)


def pgd(model: nn.Module, epsilon: float, steps: int, classes: int) -> Any:
    """Projected gradient descent from a random start (Madry et al. 2018, arXiv 1706.06083); steps of 2.5 epsilon / steps."""
    import torchattacks

    return torchattacks.PGD(model, eps=epsilon, alpha=2.5 * epsilon / steps, steps=steps, random_start=True)


def autoattack(model: nn.Module, epsilon: float, steps: int, classes: int) -> Any:
    """torchattacks' ensemble (Croce & Hein 2020, arXiv 2003.01690); below 4 classes its targeted parts are undefined."""
    import torchattacks

    seed = 0
    if classes >= 4:
        return torchattacks.AutoAttack(model, norm="Linf", eps=epsilon, version="standard", n_classes=classes, seed=seed)
    return torchattacks.MultiAttack(
        [
            torchattacks.APGD(model, eps=epsilon, norm="Linf", seed=seed, loss="ce"),
            torchattacks.Square(model, eps=epsilon, norm="Linf", seed=seed),
        ]
    )


ATTACKS: dict[str, Callable[[nn.Module, float, int, int], Any]] = {"fgsm": fgsm, "pgd": pgd, "autoattack": autoattack}
"""Attacks by name; each makes a torchattacks attack from (model, epsilon, steps, number of classes)."""


def attack_name(name: str, classes: int) -> str:
    """How results call an attack: with fewer than 4 classes AutoAttack is another one.

    Raises:
        UserError: unknown.
    """
    if name not in ATTACKS:
        raise UserError(f"unknown attack {name!r}: {suggest(name, ATTACKS)}")
    return "apgd-ce+square" if name == "autoattack" and classes < 4 else name


@dataclass(frozen=True)
class Attacked:
    """What an attack leaves at one epsilon: images (N, 3, S, S), and which are misclassified here or at a smaller one, (N,)."""

    epsilon: float
    images: Tensor
    broken: Tensor


def worst_case(
    attacked: nn.Module,
    judged: nn.Module,
    name: str,
    images: Tensor,
    targets: Tensor,
    epsilons: tuple[float, ...],
    *,
    steps: int = 20,
    classes: int,
    batch_size: int = 32,
    seed: int = 0,
    start: dict[float, Attacked] | None = None,
) -> Iterator[Attacked]:
    """Attack at one epsilon after the other, from the smallest; an image once broken stays as it was broken.

    Args:
        attacked: what the attack sees.
        judged: what decides whether an image is broken; another model where attacks transfer.
        name: in `ATTACKS`.
        images: (N, 3, S, S) in [0, 1].
        targets: (N,).
        epsilons: largest change of a pixel.
        steps: of PGD.
        classes: C.
        batch_size: images at a time.
        seed: of random starts.
        start: what a weaker attack has left at the same epsilons: only what survived it is attacked.
    """
    adversarial = images.clone()
    broken = misclassified(judged, images, targets, batch_size)
    for epsilon in sorted(epsilons):
        if start is not None:
            new = start[epsilon].broken & ~broken
            adversarial[new] = start[epsilon].images[new]
            broken = broken | new
        survivors = torch.nonzero(~broken).squeeze(1)
        if len(survivors) and epsilon > 0:
            attack = ATTACKS[name](attacked, epsilon, steps, classes)
            for number, chosen in enumerate(survivors.split(batch_size)):
                with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
                    torch.manual_seed(derive_seed("attack", name, epsilon, seed, number))
                    adversarial[chosen] = attack(images[chosen], targets[chosen]).detach()
            broken = broken.clone()
            broken[survivors] = misclassified(judged, adversarial[survivors], targets[survivors], batch_size)
        yield Attacked(epsilon, adversarial.clone(), broken)


@torch.no_grad()
def misclassified(model: nn.Module, images: Tensor, targets: Tensor, batch_size: int) -> Tensor:
    """Which images a classifier gets wrong, (N,)."""
    found = [model(x).argmax(-1) != y for x, y in zip(images.split(batch_size), targets.split(batch_size), strict=True)]
    return torch.cat(found)
