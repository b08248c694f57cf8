"""Tables: which is best, how numbers print, and what LaTeX and CSV make of awkward text."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import cli
from benchmarks.records import Record, RunInfo, write_record
from benchmarks.tables import Table, Value, describe_source, format_number, format_value, make_tables, to_csv, to_latex, to_markdown
from benchmarks.task import Column

LOWER = Column("nll", "NLL", "lower")
PLAIN = Column("t", "T")


def one(mean: float | None) -> Value:
    return Value(mean, None, int(mean is not None), 1)


def test_the_lowest_is_best_and_nothing_is_best_alone() -> None:
    table = Table(
        "p", "t", "t", (LOWER, PLAIN), [("a", [one(0.2), one(1)]), ("b", [one(0.1), one(2)]), ("c", [one(None), one(3)])], ""
    )
    assert (table.best(0), table.best(1)) == ({1}, set())
    assert "**0.100**" in to_markdown([table])
    assert Table("p", "t", "t", (LOWER,), [("a", [one(0.2)]), ("c", [one(None)])], "").best(0) == set()


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [("bytes", 13_500_000, "13.5 MB"), ("seconds", 59.94, "59.9 s"), ("seconds", 1200, "20.0 min"), ("seconds", 72000, "20.0 h")],
)
def test_units(unit: str, value: float, text: str) -> None:
    assert format_number(value, Column("m", "M", unit=unit)) == text  # type: ignore[arg-type]


def test_counts_of_defined_seeds() -> None:
    assert format_value(Value(0.5, 0.25, 2, 3), LOWER) == "0.500 ± 0.250 (2 of 3)"


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_csv_reads_back_exactly(title: str, mean: float) -> None:
    title = title.replace("\r", "").replace("\x00", "")
    rows = list(csv.DictReader(io.StringIO(to_csv([Table("p", "t", title, (LOWER,), [("a", [one(mean)])], "")]), newline="")))
    assert len(rows) == 1
    assert rows[0]["table"] == f"p: {title}"
    assert float(rows[0]["mean"]) == mean


def test_every_special_character_is_escaped() -> None:
    text = to_latex([Table("p", "t", r"50% & $1 #2 a_b {c} ~ ^ \x", (LOWER,), [("a", [Value(1, 2, 2, 2)])], "")])
    assert r"50\% \& \$1 \#2 a\_b \{c\} \textasciitilde{} \textasciicircum{} \textbackslash{}x" in text
    assert r"1.000 $\pm$ 2.000" in text


def recorded(label: str, seed: int = 0, particles: int = 1, accuracy: float = 0.5) -> Record:
    config = {"particles": particles, "recipe": {"average": "probabilities"}, "seed": seed}
    info = RunInfo(
        problem="p", method="single", label=label, seed=seed, backbone="b", weights="w", data="d", hash="same", config=config
    )
    tasks = {"classification": {"accuracy": accuracy}}
    return Record(schema_=1, run=info, training={}, tasks=tasks, task_results={}, costs={}, environment={})


def test_two_labels_of_one_configuration_stay_two_rows(tmp_path: Path) -> None:
    for label, accuracy in (("a", 0.5), ("b", 0.7)):
        write_record(recorded(label, accuracy=accuracy), tmp_path / "runs" / "p" / label / "seed0-same")
    assert [label for label, _ in make_tables(tmp_path)[0].rows] == ["a", "b"]


def test_captions_say_which_rows_have_other_seeds_and_particles() -> None:
    alike = [recorded(label, seed, 5) for label in ("a", "b") for seed in (0, 1)]
    assert "n = 5 particles (1 for single networks); mean ± standard deviation over seeds 0, 1;" in describe_source(alike)
    mixed = describe_source([*alike, recorded("c", 1, 100), recorded("d", 1, 5), recorded("e", 0), recorded("e", 1)])
    assert "n = 5 particles (1 for single networks; 100: c); mean ± standard deviation over seeds 0, 1 (1: c, d);" in mixed
    assert "; one particle; seed 0;" in f"; {describe_source([recorded('e')]).split('. ')[-1]}"


def test_tables_into_a_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = RunInfo(problem="p", method="m", label="l", seed=0, backbone="b", weights="w", data="d", hash="h", config={})
    info.config = {"particles": 1, "recipe": {"average": "probabilities"}}
    record = Record(schema_=1, run=info, training={}, tasks={}, task_results={}, costs={}, environment={})
    write_record(record, tmp_path / "runs" / "p" / "l" / "seed0-h")
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr("sys.argv", ["bella", "tables", str(tmp_path), "--to", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
