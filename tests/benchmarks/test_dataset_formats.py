"""Files of published data sets are read as others read them, and refused where they are not what they say."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import miniatures
import numpy as np
import pytest
import torch
from torchvision import datasets

from bella.errors import UserError
from benchmarks import images, prompts
from benchmarks.datasets import DataSetOptions, HeldOutOptions
from benchmarks.image_sets import image_set
from benchmarks.images import ImageSplit, array_split, hold_out, stratified_choice
from benchmarks.problems.camelyon17 import Camelyon17
from benchmarks.problems.cifar import Cifar10, Cifar100
from benchmarks.problems.domainnet import DomainNet, DomainNetOptions
from benchmarks.problems.imagenet import ImageNet, ImageNetOptions, official_synsets
from benchmarks.problems.stl10 import Stl10
from benchmarks.problems.svhn import Svhn
from benchmarks.safe_pickle import read_pickle
from benchmarks.tasks.corruption import official_images
from benchmarks.tasks.domain import restricted

READERS: dict[str, tuple[Any, Any, Any, str]] = {
    "cifar10": (Cifar10, miniatures.write_cifar10, datasets.CIFAR10, "train"),
    "cifar100": (Cifar100, miniatures.write_cifar100, datasets.CIFAR100, "train"),
    "stl10": (Stl10, miniatures.write_stl10, datasets.STL10, "split"),
    "svhn": (Svhn, miniatures.write_svhn, datasets.SVHN, "split"),
}


@pytest.mark.parametrize("name", list(READERS))
def test_arrays_are_read_as_torchvision_reads_them(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, write, reader, key = READERS[name]
    write(tmp_path)
    for module in ("cifar", "stl10", "svhn"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *a, **k: True)
    made = problem()
    size = 96 if name == "stl10" else 32
    options = HeldOutOptions(data=tmp_path, image_size=size)
    data = made.load(options)
    for split in ("train", "test"):
        theirs = reader(tmp_path, **{key: split == "train" if key == "train" else split})
        expected = np.stack([np.asarray(image) for image, _ in theirs])
        labels = np.array([label for _, label in theirs])
        parts = (data.training, data.validation) if split == "train" else (data.test,)
        seen = []
        for part in parts:
            assert isinstance(part.images, torch.Tensor)
            for place, id_ in enumerate(part.ids):
                index = int(id_.rpartition("/")[2])
                seen.append(index)
                assert np.array_equal(part.images[place].numpy(), expected[index])
                assert int(part.targets[place]) == labels[index]
        assert sorted(seen) == list(range(len(theirs)))
    if hasattr(theirs, "classes"):
        assert data.class_names == [c.replace("_", " ") for c in theirs.classes]
    assert len(data.validation) == round(0.2 * (len(data.training) + len(data.validation)))
    direct = made.load(HeldOutOptions(data=made.place(options), image_size=size))  # the data set's own folder, named itself
    assert direct.test.ids == data.test.ids


def test_the_templates_are_clips() -> None:
    assert len(prompts.CIFAR) == len(set(prompts.CIFAR)) == 18
    assert len(prompts.imagenet()) == 80
    assert prompts.imagenet()[0] == "a bad photo of a {}."
    every = (prompts.CIFAR, prompts.STL10, prompts.SVHN, prompts.CAMELYON17, prompts.DOMAINNET, prompts.imagenet())
    assert all(template.count("{}") == 1 for templates in every for template in templates)
    with pytest.raises(ValueError, match=r"no \{\} for the name"):
        DataSetOptions(templates=("a photo",))


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_malicious_batch_is_refused_and_not_run(protocol: int, tmp_path: Path) -> None:
    miniatures.write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(pickle.dumps({"data": Malicious(tmp_path / "run"), "labels": []}, protocol=protocol))
    pickle.loads(batch.read_bytes())  # plain pickle does run it
    assert (tmp_path / "run").exists()
    (tmp_path / "run").unlink()
    with pytest.raises(UserError, match=r"data_batch_2: refused: it asks for \w+\.system"):
        Cifar10().load(HeldOutOptions(data=tmp_path, image_size=32))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'x'\ntR.",
        b"cnumpy\nndarray\n((I1000000000000\nttR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I100000000000\ntS'b'\ntR.",
        b"c_codecs\nencode\n(Vx\nS'zlib'\ntR.",
    ],
)
def test_what_no_array_needs_is_refused(code: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(code)
    with pytest.raises(UserError, match="refused"):
        read_pickle(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x80\x02}q", b"\x80\x02cnumpy\nndarray\nq\x00."])
def test_damaged_batches_are_named(content: bytes, tmp_path: Path) -> None:
    miniatures.write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(content)
    with pytest.raises(UserError, match=r"test_batch: (damaged|not a batch)"):
        Cifar10().load(HeldOutOptions(data=tmp_path, image_size=32))


def test_arrays_as_numpy_1_and_python_2_wrote_them(tmp_path: Path) -> None:
    """The official files: NumPy 1's module path, and words as bytes."""
    miniatures.write_cifar10(tmp_path)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    expected = read_pickle(batch)
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        content = batch.read_bytes().replace(b"cnumpy._core.multiarray\n", b"c" + module + b"\n")
        assert module in content
        batch.write_bytes(content)
        assert np.array_equal(read_pickle(batch)["data"], expected["data"])
        batch.write_bytes(content.replace(b"c" + module + b"\n", b"cnumpy._core.multiarray\n"))
    python2 = (  # a dict with a str key and an array, as cPickle of Python 2.7 and NumPy 1.6 wrote them
        b"\x80\x02}q\x01U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05"
        b"(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x07\xfftbs."
    )
    batch.write_bytes(python2)
    assert read_pickle(batch)["data"].tolist() == [7, 255]


@pytest.mark.parametrize("file", ["train_X.bin", "test_y.bin"])
def test_a_cut_stl10_is_named(file: str, tmp_path: Path) -> None:
    miniatures.write_stl10(tmp_path)
    path = tmp_path / "stl10_binary" / file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"stl10_binary.*fetch"):
        Stl10().load(HeldOutOptions(data=tmp_path, image_size=32))


def test_a_damaged_svhn_is_named(tmp_path: Path) -> None:
    miniatures.write_svhn(tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 5.0 no more")
    with pytest.raises(UserError, match=r"train_32x32\.mat: not the official file"):
        Svhn().load(HeldOutOptions(data=tmp_path, image_size=32))


def test_what_does_not_fit_resized_is_resized_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, labels = miniatures.labelled(12, 3, 32, 0)
    ids = [str(i) for i in range(12)]
    at_once = array_split(pixels, labels, ids, 48)
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 1000)
    per_batch = array_split(pixels, labels, ids, 48)
    assert isinstance(at_once.images, torch.Tensor)
    assert isinstance(per_batch.images, torch.Tensor)
    assert at_once.images.shape[1] == 48
    assert per_batch.images.shape[1] == 32
    batch = torch.tensor([5, 0, 11])
    assert torch.equal(at_once.inputs(batch, torch.device("cpu")), per_batch.inputs(batch, torch.device("cpu")))
    assert per_batch.pixels(batch).shape == (3, 48, 48, 3)


def test_held_out_images_are_in_proportion_and_apart() -> None:
    labels = np.repeat(np.arange(10), 50)
    training, validation = hold_out(labels, 0.2)
    assert np.bincount(labels[validation]).tolist() == [10] * 10
    assert sorted(training + validation) == list(range(500))
    few, fewer = hold_out(labels, 0.2, limit=40)
    assert (len(few), len(fewer)) == (40, 10)
    assert not set(few) & set(fewer)


def test_a_million_examples_are_chosen_from_in_seconds() -> None:
    labels = np.repeat(np.arange(1000), 100)
    assert len(stratified_choice(labels, 2000)) == 2000


def test_imagenet_classes_and_further_sets(tmp_path: Path) -> None:
    miniatures.write_imagenet(tmp_path)
    folders = {name: tmp_path / f"imagenet-{name}" for name in ("v2", "r", "a")}
    options = ImageNetOptions(data=tmp_path, image_size=32, validation_fraction=0.25, **folders)
    data = ImageNet().load(options)
    assert data.class_names == ["tench", "goldfish", "great white shark"]
    assert data.class_folders == miniatures.SYNSETS
    assert official_synsets() == sorted(official_synsets())
    assert len(official_synsets()) == 1000
    assert (len(data.training), len(data.validation), len(data.test)) == (18, 6, 12)
    v2, r, a = (data.further[f"domain-imagenet-{name}"] for name in ("v2", "r", "a"))
    assert isinstance(v2, ImageSplit)
    assert isinstance(r, ImageSplit)
    assert isinstance(a, ImageSplit)
    assert v2.targets.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]  # 999 is no class of the three
    assert (v2.classes, r.classes, a.classes) == (None, (1, 2), (2,))
    assert set(r.targets.tolist()) == {1, 2}
    other = tmp_path / "other"
    miniatures.write_class_folders(other / "train", ("n00000001", "n01443537"), 4, 0)
    miniatures.write_class_folders(other / "val", ("n00000001", "n01443537"), 2, 1)
    assert ImageNet().load(ImageNetOptions(data=other, image_size=32, validation_fraction=0.25)).class_names == [
        "n00000001",
        "goldfish",
    ]


def test_predictions_on_some_classes_are_given_that_it_is_one_of_them() -> None:
    torch.manual_seed(0)
    probabilities = torch.rand(6, 5, dtype=torch.float64).softmax(-1)
    found = restricted(probabilities.log(), (1, 3)).exp()
    expected = probabilities[:, [1, 3]] / probabilities[:, [1, 3]].sum(-1, keepdim=True)
    torch.testing.assert_close(found[:, [1, 3]], expected)
    assert not found[:, [0, 2, 4]].any()


def test_imagenet_c_goes_by_the_class_folders(tmp_path: Path) -> None:
    miniatures.write_imagenet(tmp_path)
    split = official_images(tmp_path / "imagenet-c", "fog", 5, 9, 32, ("n01484850", "n01440764"))
    assert all(
        id_.startswith(f"fog/5/{('n01484850', 'n01440764')[int(t)]}/") for id_, t in zip(split.ids, split.targets, strict=True)
    )
    assert len(split) == 8
    with pytest.raises(UserError, match="no images in class folders called tench"):
        official_images(tmp_path / "imagenet-c", "fog", 5, 9, 32, ("tench", "goldfish"))


def test_domainnet_learns_several_domains(tmp_path: Path) -> None:
    miniatures.write_domainnet(tmp_path)
    data = DomainNet().load(DomainNetOptions(data=tmp_path, image_size=32, domains=("real", "sketch")))
    assert data.class_names == ["aircraft carrier", "airplane", "alarm clock"]
    assert {id_.partition("/")[0] for id_ in data.training.ids} == {"real", "sketch"}
    assert {id_.partition("/")[0] for id_ in data.test.ids} == {"real", "sketch"}
    assert set(data.further) == {"domain-clipart", "domain-real", "domain-sketch"}
    (tmp_path / "clipart_test.txt").write_text("clipart/airplane/airplane_0.jpg 2\n")
    with pytest.raises(UserError, match="airplane is class 2 there"):
        DomainNet().load(DomainNetOptions(data=tmp_path, image_size=32))
    (tmp_path / "real_train.txt").write_text("../../etc/passwd 0\n")
    with pytest.raises(UserError, match=r"real_train\.txt, line 1"):
        DomainNet().load(DomainNetOptions(data=tmp_path, image_size=32))
    assert "did you mean 'real'" in str(DomainNet().missing(DomainNetOptions(data=tmp_path, domains=("reel",))))


def test_camelyon17_keeps_wilds_splits(tmp_path: Path) -> None:
    miniatures.write_camelyon17(tmp_path)
    data = Camelyon17().load(Camelyon17.options(data=tmp_path, image_size=32, train_limit=8))
    assert (len(data.training), len(data.validation), len(data.test)) == (8, 8, 12)
    assert all("patient_024" in id_ for id_ in data.validation.ids)  # hospital 1
    assert all("patient_044" in id_ for id_ in data.test.ids)  # hospital 2
    assert data.further["domain-test"] is data.test
    assert len(data.further["domain-id_val"]) == 12
    (tmp_path / "camelyon17_v1.0" / "metadata.csv").write_text("patient\n1\n")
    with pytest.raises(UserError, match="wilds cannot read it"):
        Camelyon17().load(Camelyon17.options(data=tmp_path, image_size=32))


def test_a_problem_is_an_image_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELLA_DATA", str(tmp_path))
    with pytest.raises(UserError, match=r"image set problem:svhn: svhn: no train_32x32\.mat in"):
        image_set("problem:svhn", 48, 10)
    miniatures.write_svhn(tmp_path / "svhn")
    split = image_set("problem:svhn", 48, 10)
    assert len(split) == 10
    assert split.pixels(torch.arange(10)).shape == (10, 48, 48, 3)
    assert len(image_set("problem:digits", 32, 15)) == 15
    with pytest.raises(UserError, match="did you mean 'svhn'"):
        image_set("problem:svh", 48, 10)
    with pytest.raises(UserError, match="no images of 48 px"):
        image_set("problem:easy-vqa", 48, 10)
