"""Published data sets in miniature, byte for byte in the form they are published in: a few images, easy to tell apart."""

from __future__ import annotations

import json
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


# ---- questions about images -----------------------------------------------------------------------------------------

_COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def write_vqav2(root: Path, train: int = 12, test: int = 6) -> None:
    """Questions and annotations as JSON, ten people's answers each, and COCO's image names: is the picture red? which colour?"""
    random = np.random.default_rng(40)
    for split, count in (("train2014", train), ("val2014", test)):
        (root / split).mkdir(parents=True)
        questions, annotations = [], []
        for image in range(1, count + 1):
            colour = list(_COLOURS)[image % 3]
            pixels = np.clip(random.normal(_COLOURS[colour], 20, (40, 50, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / f"COCO_{split}_{image:012d}.jpg")
            asked = (
                ("Is the picture red?", "yes" if colour == "red" else "no", "yes/no"),
                ("What colour is the picture?", colour, "other"),
                ("How many pictures?", "1", "number"),
            )
            for place, (text, answer, kind) in enumerate(asked):
                number = image * 1000 + place
                questions.append({"image_id": image, "question": text, "question_id": number})
                people = [answer] * 7 + ["The Red.", "a  blue", "one"] if image % 2 else [answer] * 10
                annotations.append(
                    {
                        "question_type": text.split()[0].lower(),
                        "multiple_choice_answer": answer,
                        "answers": [
                            {"answer": said, "answer_confidence": "yes", "answer_id": i} for i, said in enumerate(people, 1)
                        ],
                        "image_id": image,
                        "answer_type": kind,
                        "question_id": number,
                    }
                )
        about = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": split, "license": {}}
        (root / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(
            json.dumps({**about, "task_type": "Open-Ended", "questions": questions})
        )
        (root / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({**about, "annotations": annotations}))


def write_llava(folder: Path) -> Path:
    """A LLaVA of two layers with random weights, and a tokenizer of words, as transformers stores them."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast

    from benchmarks.llava import AFTER_IMAGE, BEFORE_IMAGE

    text = " ".join(
        (BEFORE_IMAGE, AFTER_IMAGE, "Is the picture red? What colour How many pictures? Yes No Red Green Blue Light blue green 1")
    )
    split = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="isolated")
    words = dict.fromkeys(piece for piece, _ in split.pre_tokenize_str(text) if piece.strip())
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        projection_dim=8,
    )
    language = LlamaConfig(
        vocab_size=len(vocabulary) + 5, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    config = LlavaConfig(vision_config=vision, text_config=language, image_token_id=len(vocabulary) + 1)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder
