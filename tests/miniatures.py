"""Published data sets in miniature, byte for byte in the form they are published in: a few images, easy to tell apart."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SYNSETS = ("n01440764", "n01443537", "n01484850")
"""tench, goldfish, great white shark: the first three of ImageNet."""


def labelled(count: int, classes: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, H, H, 3) uint8, noise around a grey that says the class, and their labels."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % classes)
    grey = 30 + 200 * labels[:, None, None, None] / max(classes - 1, 1)
    return np.clip(random.normal(grey, 25, (count, side, side, 3)), 0, 255).astype(np.uint8), labels


def write_cifar10(root: Path, per_batch: int = 20) -> None:
    """`cifar-10-batches-py`."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for place, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels, labels = labelled(per_batch, 10, 32, place)
        batch = {
            "batch_label": name,
            "labels": labels.tolist(),
            "data": _rows(pixels),
            "filenames": [f"{name}_{i}.png" for i in range(per_batch)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"num_cases_per_batch": per_batch, "label_names": names, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def write_cifar100(root: Path, train: int = 300, test: int = 100) -> None:
    """`cifar-100-python`."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate((("train", train), ("test", test))):
        pixels, labels = labelled(count, 100, 32, 10 + seed)
        batch = {
            "batch_label": name,
            "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist(),
            "data": _rows(pixels),
            "filenames": [f"{i}.png" for i in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"fine_label_names": [f"kind_{i:02d}" for i in range(100)], "coarse_label_names": [f"group_{i}" for i in range(20)]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))


def _rows(pixels: np.ndarray) -> np.ndarray:
    """(N, 3072): red, green, blue."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1))


def write_stl10(root: Path, train: int = 40, test: int = 20) -> None:
    """`stl10_binary`: column by column, labels from 1."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for seed, (name, count) in enumerate((("train", train), ("test", test))):
        pixels, labels = labelled(count, 10, 96, 20 + seed)
        pixels.transpose(0, 3, 2, 1).tofile(folder / f"{name}_X.bin")
        (labels + 1).astype(np.uint8).tofile(folder / f"{name}_y.bin")
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (folder / "class_names.txt").write_text("\n".join(names) + "\n")


def write_svhn(root: Path, train: int = 60, test: int = 30) -> None:
    """`train_32x32.mat`, `test_32x32.mat`: (32, 32, 3, N), and 10 for the digit 0."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate((("train", train), ("test", test))):
        pixels, labels = labelled(count, 10, 32, 30 + seed)
        labels = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(root / f"{name}_32x32.mat", {"X": pixels.transpose(1, 2, 3, 0), "y": labels}, do_compression=True)


def write_class_folders(root: Path, names: Sequence[str], each: int, seed: int, suffix: str = "JPEG", side: int = 40) -> None:
    """CLASS/CLASS_0.JPEG, ..."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        random = np.random.default_rng([seed, place])
        for i in range(each):
            pixels = np.clip(random.normal(40 + 80 * place, 20, (side, side + 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}_{i}.{suffix}")


def write_imagenet(root: Path) -> None:
    """train and val of three synsets, ImageNet-V2 (numbered), -R and -A (two and one of them), -C (one type, two severities)."""
    write_class_folders(root / "train", SYNSETS, 8, 0)
    write_class_folders(root / "val", SYNSETS, 4, 1)
    write_class_folders(root / "imagenet-v2", ("0", "1", "2", "999"), 3, 2, "jpeg")
    write_class_folders(root / "imagenet-r", SYNSETS[1:], 3, 3, "jpg")
    (root / "imagenet-r" / "README.txt").write_text("some of the classes")
    write_class_folders(root / "imagenet-a", SYNSETS[2:], 3, 4, "jpg")
    for severity in (1, 5):
        write_class_folders(root / "imagenet-c" / "fog" / str(severity), SYNSETS, 4, 10 * severity)


def write_domainnet(root: Path, domains: Sequence[str] = ("clipart", "real", "sketch")) -> None:
    """Images and lists of some domains, three classes."""
    names = ("aircraft_carrier", "airplane", "alarm_clock")
    for seed, domain in enumerate(domains):
        write_class_folders(root / domain, names, 14, 40 + seed, "jpg")
        for split, members in (("train", range(10)), ("test", range(10, 14))):
            lines = [f"{domain}/{name}/{name}_{i}.jpg {label}" for label, name in enumerate(names) for i in members]
            (root / f"{domain}_{split}.txt").write_text("\n".join(lines) + "\n")


def write_camelyon17(root: Path, each: int = 6) -> None:
    """`camelyon17_v1.0`: five hospitals, two slides each; patients are words of three digits."""
    folder = root / "camelyon17_v1.0"
    random = np.random.default_rng(50)
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for slide in range(10):
        center, patient, node = slide // 2, f"{4 + 20 * (slide // 2):03d}", slide % 4
        own = folder / "patches" / f"patient_{patient}_node_{node}"
        own.mkdir(parents=True)
        for i in range(each):
            tumor, x, y = i % 2, 100 * slide, 32 * i
            pixels = np.clip(random.normal(60 + 120 * tumor, 30, (96, 96, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).convert("RGBA").save(own / f"patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png")
            # A sixth of the learned hospitals' patches is held out; wilds itself sets what hospitals 1 and 2 are for.
            lines.append(f"{len(lines) - 1},{patient},{node},{x},{y},{tumor},{slide},{center},{int(i >= each - 2)}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    (folder / "RELEASE_v1.0.txt").write_text("")


def write_cifar10_c(folder: Path, kinds: Sequence[str] = ("fog", "contrast"), count: int = 20) -> None:
    """CIFAR-10-C: five severities of the same labels, one after the other."""
    folder.mkdir(parents=True)
    labels = np.arange(count) % 10
    for seed, kind in enumerate(kinds):
        pixels, _ = labelled(5 * count, 10, 32, 60 + seed)
        np.save(folder / f"{kind}.npy", pixels)
    np.save(folder / "labels.npy", np.tile(labels, 5))
