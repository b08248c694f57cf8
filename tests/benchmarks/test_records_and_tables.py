"""Records are whole or absent; tables say what the records say."""

from __future__ import annotations

import csv
import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bella.errors import UserError
from benchmarks import tables
from benchmarks.records import FILE, Record, RunInfo, TaskResult, check_name, read_record, to_frame, write_record
from benchmarks.stored import find_runs
from benchmarks.task import Column


def make_record(label: str = "single", seed: int = 0, accuracy: float | None = 0.9, **config: Any) -> Record:
    full = {"particles": 1, "recipe": {"average": "probabilities"}, "seed": seed, **config}
    return Record(
        schema_=1,
        run=RunInfo(
            problem="digits",
            method="single",
            label=label,
            seed=seed,
            backbone="timm:resnet18?random",
            weights="random weights",
            data="some 100% & data_set",
            hash=f"{label}{seed}{config}",
            config=full,
        ),
        training={},
        tasks={"classification": {"accuracy": accuracy, "nll": 0.5}},
        task_results={"classification": TaskResult(hash="a", options={})},
        costs={"trainable_parameters_per_particle": 368_640, "stored_bytes": 1_474_560, "peak_memory_source": "resident-set"},
        environment={},
    )


def store(records: list[Record], out: Path) -> None:
    for number, record in enumerate(records):
        folder = out / "runs" / record.run.problem / record.run.label / f"seed{record.run.seed}-{number}"
        write_record(record, folder)


@given(st.dictionaries(st.text(min_size=1), st.none() | st.floats(allow_nan=False, allow_infinity=False)))
@settings(max_examples=40, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, values: dict[str, float | None]) -> None:
    folder = tmp_path_factory.mktemp("record")
    record = make_record()
    record.tasks["classification"] = values
    write_record(record, folder)
    assert read_record(folder / FILE) == record
    assert [p.name for p in folder.iterdir()] == [FILE]


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_truncated_record_is_one_clear_error(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    folder = tmp_path_factory.mktemp("record")
    write_record(make_record(), folder)
    text = (folder / FILE).read_text()
    (folder / FILE).write_text(text[: min(length, len(text) - 3)])
    with pytest.raises(UserError, match=r"record\.json: a damaged record"):
        read_record(folder / FILE)


def test_other_schemas_and_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    write_record(make_record(), tmp_path)
    text = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(text.replace('"schema": 1', '"schema": 7'))
    with pytest.raises(UserError, match="record schema 7, this version reads 1"):
        read_record(tmp_path / FILE)
    (tmp_path / FILE).write_text("[]")
    with pytest.raises(UserError, match="record schema None"):
        read_record(tmp_path / FILE)
    with pytest.raises(ValidationError):
        make_record(accuracy=math.nan)
    with pytest.raises(UserError, match="no such folder"):
        find_runs(tmp_path / "absent")
    with pytest.raises(UserError, match="no records in it"):
        find_runs(tmp_path)


@given(st.text())
@settings(max_examples=200)
def test_no_accepted_name_climbs_out(name: str) -> None:
    root = Path("/results/runs")
    try:
        check_name(name, "name")
    except UserError:
        return
    assert (root / name).resolve().parent == root


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "..", "a\\b", "a\n", "x" * 200])
def test_names_that_climb_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="a name has letters"):
        check_name(name, "label")


def test_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    values = [0.9, 0.95, 0.85]
    store([make_record(seed=s, accuracy=v) for s, v in enumerate(values)], tmp_path)
    table = tables.make_tables(tmp_path)[0]
    found = table.rows[0][1][0]
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1))
    assert "90.0 ± 5.0" in tables.to_markdown([table])
    assert "seeds 0, 1, 2" in table.caption
    frame = to_frame([run.record for run in find_runs(tmp_path)])
    assert frame[frame.metric == "accuracy"].value.mean() == pytest.approx(np.mean(values))


def test_best_is_bold_with_all_that_print_the_same(tmp_path: Path) -> None:
    records = [make_record("a", accuracy=0.90001), make_record("b", accuracy=0.90002), make_record("c", accuracy=0.8)]
    store(records, tmp_path)
    table = tables.make_tables(tmp_path)[0]
    assert table.best(0) == {0, 1}
    text = tables.to_markdown([table])
    assert text.count("**90.0**") == 2
    assert "**80.0**" not in text
    assert r"\textbf{90.0}" in tables.to_latex([table])


def test_undefined_values_are_dashes_with_their_count(tmp_path: Path) -> None:
    store([make_record("a", 0, 0.9), make_record("a", 1, None), make_record("b", 0, None)], tmp_path)
    cells = dict(tables.make_tables(tmp_path)[0].rows)
    column = Column("accuracy", "", "higher", 100, 1)
    assert tables.format_value(cells["a"][0], column) == "90.0 (1 of 2)"
    assert tables.format_value(cells["b"][0], column) == "–"


def test_two_configurations_of_one_label_are_two_rows_that_say_so(tmp_path: Path) -> None:
    store(
        [make_record("a", 0, 0.9, parameterisation={"rank": 2}), make_record("a", 0, 0.8, parameterisation={"rank": 8})], tmp_path
    )
    assert {label for label, _ in tables.make_tables(tmp_path)[0].rows} == {"a (rank=2)", "a (rank=8)"}


def test_latex_is_escaped_and_csv_is_exact(tmp_path: Path) -> None:
    store([make_record("a_b", accuracy=1 / 3)], tmp_path)
    made = tables.make_tables(tmp_path)
    latex = tables.to_latex(made)
    assert r"a\_b" in latex
    assert r"some 100\% \& data\_set" in latex
    assert r"$\theta_0$" in latex
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(made))))
    accuracy = next(row for row in rows if row["metric"] == "accuracy")
    assert float(accuracy["mean"]) == 1 / 3
    assert accuracy["std"] == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 K"), (368_640, "369 K"), (999_999, "1.00 M"), (87_849_216, "87.8 M"), (9_996, "10.0 K")],
)
def test_units_are_readable(value: float, text: str) -> None:
    assert tables.format_units(value, ("", " K", " M", " B")) == text


def test_tables_and_the_command_do_not_import_torch() -> None:
    code = "import sys, benchmarks.cli, benchmarks.tables, benchmarks.tasks.classification; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
