"""Every published data set, in miniature, the whole way: read, learned, asked, recorded, tabled; and no socket is opened."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import miniatures
import pytest

from benchmarks import tables
from benchmarks.datasets import DataSetOptions
from benchmarks.executors import Terms, run_suite
from benchmarks.plan import make_plan
from benchmarks.progress import Progress
from benchmarks.records import FILE, Record, read_record
from benchmarks.registries import PROBLEMS
from benchmarks.suite import Suite

WRITERS: dict[str, Callable[[Path], None]] = {
    "cifar10": miniatures.write_cifar10,
    "cifar100": miniatures.write_cifar100,
    "stl10": miniatures.write_stl10,
    "svhn": miniatures.write_svhn,
    "imagenet": miniatures.write_imagenet,
    "domainnet": miniatures.write_domainnet,
    "camelyon17": miniatures.write_camelyon17,
    "vqav2": miniatures.write_vqav2,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """$BELLA_DATA with every data set."""
    root = tmp_path_factory.mktemp("data")
    for name, write in WRITERS.items():
        write(root / name)
    miniatures.write_cifar10_c(root / "CIFAR-10-C")
    return root


@pytest.fixture
def home(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default data folder, on a machine without a network."""

    def refuse(*arguments: object) -> NoReturn:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setenv("BELLA_DATA", str(written))
    return written


def learn(problem: str, tasks: dict[str, dict[str, Any]], out: Path, **settings: Any) -> Record:
    """One epoch of a tiny random network; the record."""
    suite = Suite.model_validate(
        {
            "name": "mini",
            "methods": ["bella-svgd"],
            "problems": [problem],
            "tasks": [{"task": name, "options": options} for name, options in tasks.items()],
            "settings": {
                "backbone": "timm:mobilenetv3_small_050?random",
                "image_size": 32,
                "epochs": 1,
                "batch_size": 16,
                "particles": 2,
                **settings,
            },
        }
    )
    runs = make_plan(suite)
    with Progress() as progress:
        run_suite(suite, runs, out, terms=Terms("cpu"), progress=progress)
    record = read_record(out / runs[0].folder / FILE)
    assert record.run.data in tables.to_markdown(tables.make_tables(out))
    assert set(record.tasks) == set(tasks)
    return record


def test_cifar10_the_whole_way(home: Path, tmp_path: Path) -> None:
    corruption = {"arrays": str(home / "CIFAR-10-C"), "types": ["fog", "contrast"], "severities": [1, 5]}
    ood = {"near": ["problem:cifar100"], "far": ["problem:svhn"], "limit": 20}
    record = learn("cifar10", {"classification": {}, "corruption": corruption, "ood": ood}, tmp_path)
    assert 0 <= (record.tasks["classification"]["accuracy"] or 0) <= 1
    assert {"fog/1/accuracy", "contrast/5/nll", "mean/ece"} <= set(record.tasks["corruption"])
    assert {"near/problem:cifar100/auroc/entropy", "far/problem:svhn/auroc/energy"} <= set(record.tasks["ood"])
    assert "CIFAR-10, 80 training and 20 test images" in record.run.data
    assert "data" not in record.run.config["data"]


@pytest.mark.parametrize("problem", ["cifar100", "stl10", "svhn"])
def test_other_arrays_the_whole_way(problem: str, home: Path, tmp_path: Path) -> None:
    record = learn(problem, {"classification": {}}, tmp_path, train_limit=50)
    assert record.tasks["classification"]["nll"] is not None


def test_imagenet_the_whole_way(home: Path, tmp_path: Path) -> None:
    root = home / "imagenet"
    folders = {name: str(root / f"imagenet-{name}") for name in ("v2", "r", "a")}
    corruption = {"arrays": str(root / "imagenet-c"), "types": ["fog"], "severities": [1, 5]}
    tasks: dict[str, dict[str, Any]] = {"classification": {}, "domain": {}, "corruption": corruption}
    record = learn("imagenet", tasks, tmp_path, validation_fraction=0.25, **folders)
    found = record.tasks["domain"]
    assert {"imagenet-v2/accuracy", "imagenet-r/nll", "imagenet-a/ece", "test/accuracy", "mean/accuracy"} <= set(found)
    # Of one class alone the answer is certain.
    assert found["imagenet-a/accuracy"] == 1
    assert found["imagenet-a/nll"] == pytest.approx(0, abs=1e-12)
    assert {"fog/1/accuracy", "fog/5/accuracy"} <= set(record.tasks["corruption"])
    assert not {"v2", "r", "a", "data"} & set(record.run.config["data"])


def test_domainnet_the_whole_way(home: Path, tmp_path: Path) -> None:
    record = learn("domainnet", {"classification": {}, "domain": {}}, tmp_path)
    found = record.tasks["domain"]
    accuracies = [found[f"{domain}/accuracy"] for domain in ("clipart", "real", "sketch")]
    assert found["test/accuracy"] == found["real/accuracy"] == record.tasks["classification"]["accuracy"]
    assert found["mean/accuracy"] == pytest.approx(sum(a for a in accuracies if a is not None) / 3)
    assert not list(tmp_path.glob("runs/*/*/*/logits/domain-real*"))  # predicted once, as the test split


def test_camelyon17_the_whole_way(home: Path, tmp_path: Path) -> None:
    """What is recorded is what wilds itself says, and what counting says."""
    record = learn("camelyon17", {"classification": {}, "domain": {}, "wilds": {}}, tmp_path)
    found = record.tasks["wilds"]
    assert found["test/acc_avg"] == pytest.approx(record.tasks["classification"]["accuracy"])
    assert found["test/acc_avg"] == pytest.approx(record.tasks["domain"]["test/accuracy"])

    from wilds.datasets.camelyon17_dataset import Camelyon17Dataset

    from benchmarks import wilds_adapter
    from benchmarks.posterior import read_predictions

    theirs = Camelyon17Dataset(root_dir=str(home / "camelyon17"))
    (logits,) = tmp_path.glob("runs/*/*/*/logits")
    for ours, name in (("test", "test"), ("validation", "val")):
        subset = theirs.get_subset(name)
        predicted = read_predictions(logits / f"{ours}.safetensors").logits.double().softmax(-1).mean(0).argmax(-1)
        with wilds_adapter._scatter():
            told, _ = subset.eval(predicted, subset.y_array, subset.metadata_array)
        right = predicted == subset.y_array
        slides = subset.metadata_array[:, theirs.metadata_fields.index("slide")]
        assert found[f"{ours}/acc_avg"] == told["acc_avg"] == pytest.approx(float(right.double().mean()))
        assert found[f"{ours}/acc_wg"] == told["acc_wg"]
        assert told["acc_wg"] == pytest.approx(min(float(right[slides == s].double().mean()) for s in slides.unique()))
        assert all(found[f"{ours}/{key}"] == value for key, value in told.items() if f"{ours}/{key}" in found)
        assert len([key for key in found if key.startswith(f"{ours}/acc_slide")]) == 2


def test_wilds_starts_no_thread(home: Path) -> None:
    import wilds.version

    PROBLEMS.resolve("camelyon17")().load(DataSetOptions(image_size=32))
    assert wilds.version.check_outdated is None


@pytest.mark.parametrize("problem", list(WRITERS))
def test_missing_data_are_one_line_with_the_way_out(problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELLA_DATA", str(tmp_path))
    made = PROBLEMS.resolve(problem)()
    line = made.missing(made.options())
    assert line is not None
    assert "\n" not in line
    assert str(tmp_path / problem) in line
    assert (f"bella download {problem}" in line) == bool(made.archives)
    assert "--set data=FOLDER" in line
    assert made.class_count(made.options()) in (2, 10, 100, 345, 1000)
    llava = problem == "vqav2"
    assert made.backbone == ("transformers:llava-hf/llava-1.5-7b-hf" if llava else "open_clip:ViT-B-32/laion2b_s34b_b79k")


@pytest.mark.parametrize("problem", list(WRITERS))
def test_fingerprints_tell_data_apart_and_not_folders(problem: str, home: Path, tmp_path: Path) -> None:
    made = PROBLEMS.resolve(problem)()
    first = made.fingerprint(made.options())
    shutil.copytree(home / problem, tmp_path / "again")
    assert made.fingerprint(made.options(data=tmp_path / "again")) == first
    changed = {"imagenet": "train/n01440764/n01440764_0.JPEG", "domainnet": "real_train.txt"}
    changed |= {"camelyon17": "camelyon17_v1.0/metadata.csv", "svhn": "test_32x32.mat", "stl10": "stl10_binary/test_y.bin"}
    changed |= {"cifar10": "cifar-10-batches-py/data_batch_3", "cifar100": "cifar-100-python/test"}
    changed |= {"vqav2": "v2_mscoco_val2014_annotations.json"}
    with open(tmp_path / "again" / changed[problem], "ab") as file:
        file.write(b" ")
    assert made.fingerprint(made.options(data=tmp_path / "again")) != first


@pytest.mark.parametrize("answers", ["yes-no", "frequent"])
def test_vqav2_with_a_llava_the_whole_way(answers: str, home: Path, tmp_path: Path) -> None:
    folder = miniatures.write_llava(tmp_path / "llava")
    settings = {"backbone": f"transformers:{folder}?precision=bf16", "image_size": 28, "batch_size": 4}
    record = learn("vqav2", {"vqa": {}}, tmp_path / "out", answers=answers, answer_count=4, **settings)
    found = record.tasks["vqa"]
    assert found["human/soft_accuracy"] is not None
    kinds = {"yes-no"} if answers == "yes-no" else {"yes-no", "number", "other"}
    assert {name.split("/")[1] for name in found if name.startswith("type/")} <= kinds
    assert "2 candidate answers, which 33%" in record.run.data or answers == "frequent"
    assert record.run.weights.endswith("in bf16")
