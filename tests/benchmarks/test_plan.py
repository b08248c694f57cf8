"""From a suite to its runs: precedence of settings, hashes, and every mistake refused with a suggestion."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bella.errors import UserError
from benchmarks.plan import Run, make_plan
from benchmarks.registries import SUITES
from benchmarks.settings import parse_assignments
from benchmarks.suite import load_suite, narrow

SUITE: dict[str, Any] = {
    "methods": ["bella-svgd"],
    "problems": ["digits"],
    "tasks": ["classification"],
    "settings": {"backbone": "timm:resnet18?random", "particles": 2},
}


def plan(tmp_path: Path, overrides: dict[str, Any] | None = None, **changes: Any) -> list[Run]:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**SUITE, **changes}))
    return make_plan(load_suite(str(file)), overrides)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": ["single"]}, r"unknown key 'method': did you mean 'methods'"),
        ({"methods": []}, "methods"),
        ({"methods": ["bella-svdg"]}, "unknown method 'bella-svdg': did you mean 'bella-svgd'"),
        ({"problems": ["digit"]}, "unknown problem 'digit': did you mean 'digits'"),
        ({"tasks": ["clasification"]}, "did you mean 'classification'"),
        ({"tasks": [{"task": "classification", "options": {"bins": 3}}]}, "unknown setting 'bins'"),
        ({"seeds": [0, 0]}, "seeds must be different"),
        ({"seeds": [-1]}, "seeds must be different numbers, 0 or more"),
        ({"seeds": "zero"}, "seeds"),
        ({"name": "../up"}, "a name has letters"),
        ({"settings": {"epoch": 3}}, "unknown setting 'epoch': did you mean 'epochs'"),
        ({"settings": {"epochs": "many"}}, "epochs is 'many'"),
        ({"settings": {"epochs": 0}}, "epochs is 0: out of range"),
        ({"settings": {"particles": 0}}, "particles is 0"),
        ({"settings": {"backbone": "tim:resnet18"}}, "unknown backbone 'tim': did you mean 'timm'"),
        ({"settings": {"backbone": "resnet18"}}, "write SCHEME:MODEL"),
        ({"settings": {"backbone": "timm:resnet18?rnd"}}, "after \\? comes"),
        ({"settings": {"backbone": "timm:resnet18x?random"}}, "unknown timm model"),
        ({"settings": {"backbone": "open_clip:ViT-B-32"}}, "names no weights"),
        ({"settings": {"backbone": "timm:resnet18?checkpoint=/no/such.safetensors"}}, "no such file"),
        ({"settings": {"backbone": "timm:resnet18?random", "targets": "cnv1"}}, "did you mean 'conv1'"),
        ({"settings": {"backbone": "timm:resnet18?random", "kernel": "factor"}}, "did you mean 'factors'"),
        ({"methods": [{"method": "single", "settings": {"rank": 3}}]}, "unknown setting 'rank'"),
        ({"methods": ["single", "single"]}, "two methods are called 'single'"),
        ({"problems": [{"problem": "digits", "settings": {"classes": "0-6"}}]}, "classes is '0-6'"),
        ({"problems": ["imagefolder"]}, "--set data=FOLDER"),
        ({"problems": [{"problem": "imagefolder", "settings": {"data": "/no/such/folder"}}]}, "no such folder: /no/such/folder"),
    ],
)
def test_mistakes_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(tmp_path, **changes)


def test_bad_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("methods: [a\nproblems: {")
    with pytest.raises(UserError, match=r"bad\.yaml: no valid YAML"):
        load_suite(str(tmp_path / "bad.yaml"))
    with pytest.raises(UserError, match="no such suite file"):
        load_suite(str(tmp_path / "absent.yaml"))
    with pytest.raises(UserError, match="unknown suite 'quik': did you mean 'quick'"):
        load_suite("quik")
    (tmp_path / "deep.yaml").write_text("[" * 3000)
    with pytest.raises(UserError, match=r"deep\.yaml: no valid YAML"):
        load_suite(str(tmp_path / "deep.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="a suite is a mapping"):
        load_suite(str(tmp_path / "list.yaml"))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_suite_file_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(Path(SUITES.resolve("quick")).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    content = content[: data.draw(st.integers(0, len(content)))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.yaml"
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            load_suite(str(path))


def test_later_settings_win(tmp_path: Path) -> None:
    base = {"backbone": "timm:resnet18?random"}
    assert plan(tmp_path, settings=base)[0].recipe.epochs == 6  # the problem's own
    assert plan(tmp_path, settings={**base, "epochs": 2})[0].recipe.epochs == 2
    problems = [{"problem": "digits", "settings": {"epochs": 3}}]
    assert plan(tmp_path, settings={**base, "epochs": 2}, problems=problems)[0].recipe.epochs == 3
    methods = [{"method": "bella-svgd", "settings": {"epochs": 4}}]
    assert plan(tmp_path, settings={**base, "epochs": 2}, problems=problems, methods=methods)[0].recipe.epochs == 4
    assert plan(tmp_path, {"epochs": 5}, settings=base, problems=problems, methods=methods)[0].recipe.epochs == 5


def test_single_networks_stay_single(tmp_path: Path) -> None:
    runs = plan(tmp_path, {"particles": 7}, methods=["single", "ensemble", "bella-single", "bella-ensemble"])
    assert [run.particles for run in runs] == [1, 7, 1, 7]


def test_the_hash_covers_what_is_trained_and_nothing_else(tmp_path: Path) -> None:
    base = plan(tmp_path)[0].hash
    for key, value in {"epochs": 3, "rank": 3, "particles": 3, "repulsion": 0.5, "image_size": 40, "targets": "conv1"}.items():
        assert plan(tmp_path, {key: value})[0].hash != base, key
    assert plan(tmp_path, seeds=[1])[0].hash != base
    assert plan(tmp_path, {"chunk_size": 1})[0].hash == base
    assert plan(tmp_path, methods=[{"method": "bella-svgd", "label": "other"}])[0].hash == base
    assert len({run.hash for run in plan(tmp_path, methods=["bella-svgd", "bella-ensemble"], seeds=[0, 1])}) == 4


def test_narrowing_keeps_own_settings_and_adds_what_is_new(tmp_path: Path) -> None:
    suite = load_suite("quick")
    assert [m.method for m in narrow(suite, ["svgd"], None, [3, 4]).methods] == ["svgd"]
    assert narrow(suite, None, None, [3, 4]).seeds == [3, 4]
    with pytest.raises(UserError, match="unknown method"):
        make_plan(narrow(suite, ["svg"], None, None))


def test_compared_rows_are_rows_of_the_suite(tmp_path: Path) -> None:
    suite = load_suite("cifar10")
    assert ("bella-svgd", "svgd") in suite.compare
    assert narrow(suite, ["svgd", "ensemble"], None, None).compare == [("svgd", "ensemble")]
    file = tmp_path / "mine.yaml"
    file.write_text("methods: [svgd, bella-svgd]\nproblems: [digits]\ntasks: [ood]\ncompare: [[svgd, bela-svgd]]\n")
    with pytest.raises(UserError, match=r"'bela-svgd' is no method or label of this suite: did you mean 'bella-svgd'"):
        load_suite(str(file))


def test_assignments_are_read_as_yaml() -> None:
    found = parse_assignments(["a=1e-3", "b=[1, 2]", "c=null", "d=word", "e=0.5", "f=x=y"])
    assert found == {"a": 1e-3, "b": [1, 2], "c": None, "d": "word", "e": 0.5, "f": "x=y"}
    for bad in ("epochs", "=3", "a=[1"):
        with pytest.raises(UserError, match="--set"):
            parse_assignments([bad])


@given(st.text())
def test_any_assignment_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        parse_assignments([text])
