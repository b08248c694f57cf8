"""Adversarial robustness: attacks in pixel space on the averaged prediction, through all particles at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from benchmarks.options import Options
from benchmarks.task import Column, Posterior, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.figures import Rows

EPSILONS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)


class AdversarialOptions(Options):
    """attacks: of fgsm, pgd, autoattack, each with its epsilons (largest change of a pixel in [0, 1]); steps: PGD's.

    limit: images, each class in proportion. mode: "direct" attacks the averaged prediction; "transfer" attacks one
    particle and tests the average.
    """

    attacks: dict[str, tuple[float, ...]] = Field(default={"fgsm": EPSILONS, "pgd": EPSILONS}, min_length=1)
    steps: int = Field(default=20, ge=1)
    limit: int = Field(default=100, ge=1)
    mode: Literal["direct", "transfer"] = "direct"

    @field_validator("attacks")
    @classmethod
    def _in_range(cls, value: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, epsilons in value.items():
            if not epsilons or not all(0 < epsilon <= 1 for epsilon in epsilons):
                raise ValueError(f"{name}: epsilons are numbers above 0, at most 1 (8/255 is 0.0314)")
        return value


def shown(epsilon: float) -> str:
    """An epsilon in metric names: three significant digits."""
    return f"{epsilon:.3g}"


class Adversarial(Task):
    """Robust accuracy, uncertainty on attacked images, and whether it tells them from clean ones."""

    options = AdversarialOptions
    tables: ClassVar[dict[str, tuple[Column, ...]]] = {
        "Adversarial": (
            Column("clean/accuracy", "Clean acc. (%)", "higher", 100, 1),
            *(Column(f"fgsm/{shown(e)}/accuracy", f"FGSM {shown(e)}", "higher", 100, 1) for e in EPSILONS),
            *(Column(f"pgd/{shown(e)}/accuracy", f"PGD {shown(e)}", "higher", 100, 1) for e in EPSILONS),
            Column("autoattack/0.0314/accuracy", "AutoAttack 0.0314", "higher", 100, 1),
            Column("pgd/0.0157/entropy", "Entropy, PGD 0.0157", None, 1, 3),
            Column("pgd/0.0157/mutual_information", "Mutual inf.", None, 1, 4),
            Column("pgd/0.0157/detection/auroc/entropy", "AUROC attacked", "higher"),
        )
    }
    caption = (
        "Accuracy in per cent under attack within an L-infinity ball of the given radius (pixels in [0, 1]), on the clean images "
        "of the same limit; worst case so far: an image broken at a smaller radius stays broken; attacks see the averaged "
        "prediction of all particles (mode transfer: one particle); AUROC of telling attacked images from clean ones by entropy"
    )

    def evaluate(self, posterior: Posterior, options: AdversarialOptions) -> dict[str, float | None]:
        """Metrics ATTACK/EPSILON/METRIC."""
        import torch

        from benchmarks import attacks
        from benchmarks.images import stratified_choice

        data, particles = posterior.data(), posterior.particles()
        classes = len(data.class_names)
        indices = torch.tensor(stratified_choice(data.test.targets.tolist(), options.limit))
        device = next(iter(particles.parameters())).device
        images = data.test.inputs(indices, device)
        if not isinstance(images, torch.Tensor):
            from bella.errors import UserError

            raise UserError("task adversarial attacks images alone: this problem has other inputs too")
        targets = data.test.targets[indices].to(device)
        judged = attacks.AveragedClassifier(particles, posterior.average)
        attacked = judged
        if options.mode == "transfer":
            attacked = attacks.AveragedClassifier(particles, posterior.average, slice(0, 1))
        clean = posterior.predictions("test").logits[:, indices]
        found: dict[str, float | None] = {"clean/accuracy": describe(clean, clean, targets.cpu(), posterior.average)["accuracy"]}
        reached: dict[str, dict[float, Any]] = {}
        for name in sorted(
            options.attacks, key=lambda attack: list(attacks.ATTACKS).index(attack) if attack in attacks.ATTACKS else 0
        ):
            called = attacks.attack_name(name, classes)
            epsilons = options.attacks[name]
            start = reached.get("pgd") if name == "autoattack" else None
            if start is not None and not set(epsilons) <= set(start):
                start = None
            reached[name] = {}
            for result in attacks.worst_case(
                attacked, judged, name, images, targets, epsilons, steps=options.steps, classes=classes, start=start
            ):
                reached[name][result.epsilon] = result
                with torch.no_grad():
                    logits = torch.cat([particles(x).float().cpu() for x in result.images.split(32)], dim=1)
                described = describe(clean, logits, targets.cpu(), posterior.average)
                found |= {f"{called}/{shown(result.epsilon)}/{metric}": value for metric, value in described.items()}
        return found

    def figures(self, rows: Rows) -> dict[str, Figure]:
        """Robust accuracy over epsilon, a panel an attack."""
        from benchmarks.figures import legend, metric_lines, panels

        keys = {key for runs in rows.values() for run in runs for key in run.record.tasks["adversarial"]}
        attacks: dict[str, dict[float, str]] = {}
        for key in keys:
            name, _, rest = key.partition("/")
            if rest.endswith("/accuracy"):
                attacks.setdefault(name, {0.0: "clean/accuracy"})[float(rest.removesuffix("/accuracy"))] = key
        figure, axes = panels(len(attacks), width=3.6, height=3.2)
        for place, (name, metrics) in zip(axes, sorted(attacks.items()), strict=True):
            ordered = dict(sorted(metrics.items()))
            metric_lines(place, rows, "adversarial", ordered, xlabel="epsilon, pixels in [0, 1]", ylabel="accuracy (%)")
            place.set_title(name)
            place.set_ylim(0, 102)
        legend(figure, axes)
        return {"adversarial": figure}


def describe(clean: Any, logits: Any, targets: Any, average: str) -> dict[str, float | None]:
    """Metrics of attacked images, from logits (n, N, C) on the clean and on the attacked ones."""
    import torch

    from bella import predictive
    from benchmarks import metrics

    clean, logits = clean.double(), logits.double()
    several = logits.shape[0] > 1
    positive = torch.arange(2 * len(targets)) >= len(targets)
    entropies = torch.cat([predictive.total_uncertainty(clean), predictive.total_uncertainty(logits)])
    information = torch.cat([predictive.epistemic_uncertainty(clean), predictive.epistemic_uncertainty(logits)])
    return {
        "accuracy": metrics.accuracy(predictive.log_predictive(logits, average), targets),
        "entropy": metrics.mean(predictive.total_uncertainty(logits)),
        "mutual_information": metrics.mean(predictive.epistemic_uncertainty(logits)) if several else None,
        "detection/auroc/entropy": metrics.auroc(entropies, positive),
        "detection/auroc/mutual_information": metrics.auroc(information, positive) if several else None,
    }
