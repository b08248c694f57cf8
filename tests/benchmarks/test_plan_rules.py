"""Rules of planning that a table depends on: revisions, tasks apart from the hash, lists of words, names of several methods."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bella.errors import UserError
from benchmarks import methods
from benchmarks.plan import Run, make_plan
from benchmarks.settings import parse_assignments
from benchmarks.suite import Suite, load_suite, narrow, with_overrides


def plan(overrides: dict[str, Any] | None = None, **changes: Any) -> list[Run]:
    base: dict[str, Any] = {"name": "mine", "methods": ["bella-svgd"], "problems": ["digits"], "tasks": ["classification"]}
    base["settings"] = {"backbone": "timm:resnet18?random"}
    return make_plan(Suite.model_validate({**base, **changes}), overrides)


def test_a_raised_revision_changes_the_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plan()[0].hash
    monkeypatch.setattr(methods, "BELLA_SVGD", dataclasses.replace(methods.BELLA_SVGD, revision=methods.BELLA_SVGD.revision + 1))
    assert plan()[0].hash != before


def test_settings_of_methods_that_are_left_out_are_no_errors() -> None:
    settings = {"backbone": "timm:resnet18?random", "rank": 2, "repulsion": 0.5}
    whole = {"methods": ["single", "bella-svgd"], "problems": ["digits"], "tasks": ["classification"], "settings": settings}
    suite = Suite.model_validate({"name": "mine", **whole})
    alone = narrow(suite, methods=["single"], tasks=None, seeds=None)
    assert make_plan(alone) == make_plan(suite)[:1]
    with pytest.raises(UserError, match="suite mine: unknown setting 'rnk'"):
        make_plan(alone.model_copy(update={"settings": {**settings, "rnk": 2}}))
    with pytest.raises(UserError, match="--set: unknown setting 'rank'"):  # said here and now, it is a mistake
        make_plan(alone, {"rank": 3})


def test_tasks_are_hashed_apart_from_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.tasks.classification import Classification

    (before,) = plan()
    monkeypatch.setattr(Classification, "revision", Classification.revision + 1)
    (after,) = plan()
    assert after.hash == before.hash
    assert after.tasks[0].hash != before.tasks[0].hash


def test_the_folder_tells_problem_label_seed_and_hash() -> None:
    run = plan(methods=[{"method": "bella-svgd", "label": "mine"}], seeds=[7])[0]
    assert run.folder.parts == ("runs", "digits", "mine", f"seed7-{run.hash}")


def test_what_a_method_fixes_wins_over_everything() -> None:
    own = [{"method": "single", "settings": {"particles": 4}}]
    assert plan({"particles": 9}, methods=own, settings={"backbone": "timm:resnet18?random", "particles": 3})[0].particles == 1


def test_shipped_suites_plan() -> None:
    runs = make_plan(load_suite("smoke"))
    assert len({run.hash for run in runs}) == len(runs) == 6
    assert {run.particles for run in runs} == {1, 2}


def test_targets_are_words_with_commas_or_a_list() -> None:
    spellings = (["targets=conv1,layer*.conv2"], ["targets=[conv1, layer*.conv2]"])
    found = [plan(parse_assignments(words))[0] for words in spellings]
    assert found[0].particle_options["targets"] == ["conv1", "layer*.conv2"]
    assert found[0].hash == found[1].hash


def test_narrowing_by_label_keeps_that_entry() -> None:
    suite = Suite.model_validate(
        {
            "name": "mine",
            "methods": [{"method": "svgd", "label": "a", "settings": {"epochs": 9}}, "svgd"],
            "problems": ["digits"],
            "tasks": ["classification"],
        }
    )
    assert [m.settings for m in narrow(suite, ["a"], None, None).methods] == [{"epochs": 9}]
    assert len(narrow(suite, ["svgd"], None, None).methods) == 2


def suite(**own: Any) -> Suite:
    return Suite.model_validate(
        {"name": "mine", "methods": ["bella-svgd"], "problems": ["digits"], "tasks": ["classification"], **own}
    )


@given(st.integers(-9, 9), st.integers(1, 99))
def test_powers_of_ten_are_numbers(exponent: int, digits: int) -> None:
    assert parse_assignments([f"learning_rate={digits}e{exponent}"]) == {"learning_rate": float(f"{digits}e{exponent}")}


@given(st.lists(st.integers() | st.booleans() | st.none(), max_size=5))
def test_lists_are_read_as_lists(values: list[Any]) -> None:
    words = ["null" if v is None else str(v).lower() for v in values]
    assert parse_assignments([f"x=[{', '.join(words)}]"]) == {"x": values}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'"),
        ({"prior_std": 0}, "prior_std is 0"),
        ({"head": "zeroshot"}, "head is 'zeroshot'"),
        ({"image_size": 4}, "image_size is 4"),
        ({"targets": "c_fcc"}, "c_fcc"),
    ],
)
def test_values_out_of_range_are_refused_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(changes)


@pytest.mark.parametrize("word", ["d=2020-13-45", "d=0x_"])
def test_values_that_yaml_cannot_construct_are_refused(word: str) -> None:
    with pytest.raises(UserError, match="--set"):
        parse_assignments([word])


def test_suite_files_that_yaml_cannot_construct_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("methods: [single]\nproblems: [digits]\ntasks: [classification]\ndescription: 2020-13-45\n")
    with pytest.raises(UserError, match=r"s\.yaml"):
        load_suite(str(tmp_path / "s.yaml"))


@pytest.mark.parametrize("setting", ["clip_norm", "prior_std", "repulsion"])
def test_infinite_settings_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=setting):
        _ = make_plan(suite(), {"backbone": "timm:resnet18?random", setting: float("inf")})[0].hash


@pytest.mark.parametrize("setting", [{"rank": 0}, {"rank": -2}, {"targets": [], "head": "zero-shot"}])
def test_bad_ranks_and_no_targets_are_refused_at_planning(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"rank|targets"):
        make_plan(suite(), {"backbone": "timm:resnet18?random", **setting})


@pytest.mark.parametrize("seeds", [[0, 0], [-1], []])
def test_seeds_of_the_command_line_obey_the_suites_rule(seeds: list[int]) -> None:
    with pytest.raises(UserError, match="seeds"):
        make_plan(narrow(suite(settings={"backbone": "timm:resnet18?random"}), None, None, seeds))


def test_a_suite_with_its_overrides_plans_the_same_runs() -> None:
    suite = Suite.model_validate(
        {
            "name": "mine",
            "methods": [{"method": "bella-svgd", "settings": {"rank": 2, "repulsion": 0.5}}],
            "problems": [{"problem": "digits", "settings": {"epochs": 3}}],
            "tasks": ["classification"],
            "settings": {"backbone": "timm:resnet18?random", "rank": 3},
        }
    )
    overrides = {"rank": 5, "epochs": 1}
    planned = make_plan(suite, overrides)
    assert planned[0].particle_options["rank"] == 5
    assert [run.hash for run in make_plan(with_overrides(suite, overrides))] == [run.hash for run in planned]
