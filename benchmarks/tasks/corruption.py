"""Corruption: how accuracy and calibration hold on corrupted test images, by type and severity.

Corruptions are those of Hendrycks & Dietterich 2019 (arXiv 1903.12261), made by the package imagecorruptions-imaug.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from bella.errors import UserError, suggest
from benchmarks.options import Options
from benchmarks.records import check_name
from benchmarks.task import Column, Posterior, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from benchmarks.figures import Rows
    from benchmarks.images import ImageSplit

TYPES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
OWN_GENERATOR = ("impulse_noise", "glass_blur")
"""Types that draw from a generator of their own, fresh at every call unless they are given a seed."""

METRICS = ("accuracy", "nll", "ece", "tempered/nll", "tempered/ece")


class CorruptionOptions(Options):
    """types: of corruption; severities: 1 to 5; limit: test images, each class in proportion.

    arrays: a folder with the official arrays (CIFAR-10-C, CIFAR-100-C): TYPE.npy, five severities one after the other, and
    labels.npy, whose labels must be the problem's class indices; or with the official images (ImageNet-C):
    TYPE/SEVERITY/CLASS/*.JPEG, class folders called as the problem's. Left out: the test split is corrupted here.
    """

    arrays: Path | None = None
    types: tuple[str, ...] = Field(default=TYPES, min_length=1)
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(default=(1, 2, 3, 4, 5), min_length=1)
    limit: int = Field(default=500, ge=1)


class Corruption(Task):
    """Accuracy, NLL and ECE for each type and severity, also after temperature scaling, and their means."""

    revision = 2
    options = CorruptionOptions
    tables: ClassVar[dict[str, tuple[Column, ...]]] = {
        "Corruption": (
            Column("clean/accuracy", "Clean acc. (%)", "higher", 100, 1),
            Column("mean/accuracy", "Acc. (%)", "higher", 100, 1),
            *(Column(f"mean/{s}/accuracy", f"Acc., severity {s}", "higher", 100, 1) for s in (1, 3, 5)),
            Column("mean/nll", "NLL", "lower"),
            Column("mean/ece", "ECE (%)", "lower", 100, 1),
            *(Column(f"mean/{s}/ece", f"ECE, severity {s}", "lower", 100, 1) for s in (1, 3, 5)),
            Column("mean/tempered/nll", "NLL (T)", "lower"),
            Column("mean/tempered/ece", "ECE (T, %)", "lower", 100, 1),
        )
    }
    caption = (
        "Means over corruption types of corrupted test images (package imagecorruptions-imaug, after Hendrycks & Dietterich 2019), "
        "over all severities asked for and by severity; accuracy and ECE (15 equal bins, L1 norm) in per cent, NLL in nats; (T): "
        "after temperature scaling, with the T of the clean validation split; clean: the same images without corruption"
    )

    def evaluate(self, posterior: Posterior, options: CorruptionOptions) -> dict[str, float | None]:
        """Metrics TYPE/SEVERITY/METRIC, mean/SEVERITY/METRIC, mean/METRIC, clean/METRIC."""
        from bella import predictive
        from benchmarks import metrics

        for kind in options.types:
            if kind not in TYPES:
                raise UserError(f"task corruption: unknown type {kind!r}: {suggest(kind, TYPES)}")
        found: dict[str, float | None] = {}
        validation = posterior.predictions("validation")
        temperature = predictive.fit_temperature(
            predictive.log_predictive(validation.logits.double(), posterior.average), validation.targets
        )

        def measure(name: str, stored: str, kind: str | None, severity: int) -> None:
            def load() -> ImageSplit:
                data = posterior.data()
                if options.arrays is None or kind is None:
                    return corrupted(data.test, kind, severity, options.limit)
                folder = options.arrays.expanduser()
                if (folder / kind).is_dir():
                    names = data.class_folders or tuple(data.class_names)
                    return official_images(folder, kind, severity, options.limit, data.image_size, names)
                return official(folder, kind, severity, options.limit, data.image_size)

            predictions = posterior.predictions(stored, load)
            averaged = predictive.log_predictive(predictions.logits.double(), posterior.average)
            found[f"{name}/accuracy"] = metrics.accuracy(averaged, predictions.targets)
            found[f"{name}/nll"] = metrics.nll(averaged, predictions.targets)
            found[f"{name}/ece"] = metrics.expected_calibration_error(averaged, predictions.targets)
            tempered = predictive.temper(averaged, temperature)
            found[f"{name}/tempered/nll"] = metrics.nll(tempered, predictions.targets)
            found[f"{name}/tempered/ece"] = metrics.expected_calibration_error(tempered, predictions.targets)

        source = "corruption" if options.arrays is None else f"official-{check_name(options.arrays.name, 'arrays: folder')}"
        measure("clean", f"corruption-none-{options.limit}", None, 0)
        for kind in options.types:
            for severity in options.severities:
                measure(f"{kind}/{severity}", f"{source}-{kind}-{severity}-{options.limit}", kind, severity)
        for metric in METRICS:
            for severity in options.severities:
                found[f"mean/{severity}/{metric}"] = _mean([found[f"{kind}/{severity}/{metric}"] for kind in options.types])
            found[f"mean/{metric}"] = _mean([found[f"mean/{severity}/{metric}"] for severity in options.severities])
        return found

    def figures(self, rows: Rows) -> dict[str, Figure]:
        """Accuracy and ECE over severity, means over types; severity 0 is the clean images."""
        from benchmarks.figures import legend, metric_lines, panels

        figure, axes = panels(2, width=3.6, height=3.2)
        for place, (metric, title) in zip(axes, (("accuracy", "accuracy (%)"), ("ece", "ECE (%)")), strict=True):
            names: dict[float, str] = {0: f"clean/{metric}", **{s: f"mean/{s}/{metric}" for s in range(1, 6)}}
            metric_lines(place, rows, "corruption", names, xlabel="severity", ylabel=title)
        legend(figure, axes)
        return {"corruption": figure}


def _mean(values: list[float | None]) -> float | None:
    """Mean of what is defined; None of nothing."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def corrupted(split: object, kind: str | None, severity: int, limit: int) -> ImageSplit:
    """The first images of a split's proportional choice, corrupted; the same for every method and seed.

    Raises:
        UserError: the examples are no images, or the package is missing.
    """
    import numpy as np
    import torch

    from bella.particles import derive_seed
    from benchmarks.images import ImageSplit, stratified_choice

    if not isinstance(split, ImageSplit):
        raise UserError("task corruption works on problems of images")
    indices = stratified_choice(split.targets.tolist(), limit)
    pixels = split.pixels(torch.tensor(indices))
    ids = [split.ids[i] for i in indices]
    if kind is not None:
        try:
            import imagecorruptions
        except ImportError as error:
            raise UserError("task corruption needs imagecorruptions-imaug: pip install 'bella-bench[embedded]'") from error
        if split.image_size < 32:
            raise UserError(f"task corruption needs images of 32 px or more: set image_size (now {split.image_size})")
        made = []
        state = np.random.get_state()
        try:
            for image, name in zip(pixels.numpy(), ids, strict=True):
                seed = derive_seed("corruption", kind, severity, name) % 2**32
                np.random.seed(seed)
                own = {"seed": seed} if kind in OWN_GENERATOR else {}
                made.append(imagecorruptions.corrupt(image, corruption_name=kind, severity=severity, **own))
        finally:
            np.random.set_state(state)
        pixels = torch.from_numpy(np.stack(made))
    return ImageSplit(pixels, split.targets[torch.tensor(indices)], ids, split.image_size)


def official(folder: Path, kind: str, severity: int, limit: int, image_size: int) -> ImageSplit:
    """Images of one type and severity from the official arrays, resized.

    Raises:
        UserError: the arrays are missing, or not of the official form.
    """
    import numpy as np

    from benchmarks.images import array_split, stratified_choice

    try:
        pixels = np.load(folder / f"{kind}.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"task corruption: {folder}: not the official arrays ({error}), and no folder {kind}; download CIFAR-10-C "
            "or ImageNet-C from zenodo.org"
        ) from error
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8 or len(pixels) % 5 or len(pixels) != len(labels):
        raise UserError(f"task corruption: {folder / kind}.npy: shape {pixels.shape}, {len(labels)} labels: not the official form")
    count = len(pixels) // 5
    start = (severity - 1) * count
    own = labels[start : start + count]
    chosen = stratified_choice(own, limit)
    ids = [f"{kind}/{severity}/{i:05d}" for i in chosen]
    return array_split(pixels[[start + i for i in chosen]], own[chosen], ids, image_size)


def official_images(folder: Path, kind: str, severity: int, limit: int, image_size: int, classes: tuple[str, ...]) -> ImageSplit:
    """Images of one type and severity from the official class folders, resized; folders of classes not learned are left out.

    Raises:
        UserError: there are none.
    """
    from benchmarks.images import SUFFIXES, load_split, stratified_choice

    place = folder / kind / str(severity)
    found = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((place / name).glob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not found:
        raise UserError(f"task corruption: {place}: no images in class folders called {classes[0]}, {classes[1]}, ...")
    files = [found[i] for i in stratified_choice([label for _, label in found], limit)]
    ids = [file.relative_to(folder).as_posix() for file, _ in files]
    return load_split([file for file, _ in files], [label for _, label in files], ids, image_size)
