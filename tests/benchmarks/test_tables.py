"""Tables: which is best, how numbers print, and what LaTeX and CSV make of awkward text."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.tables import Table, Value, format_number, format_value, to_csv, to_latex, to_markdown
from benchmarks.task import Column

LOWER = Column("nll", "NLL", "lower")
PLAIN = Column("t", "T")


def one(mean: float | None) -> Value:
    return Value(mean, None, int(mean is not None), 1)


def test_the_lowest_is_best_and_nothing_is_best_alone() -> None:
    table = Table("t", (LOWER, PLAIN), [("a", [one(0.2), one(1)]), ("b", [one(0.1), one(2)]), ("c", [one(None), one(3)])], "")
    assert (table.best(0), table.best(1)) == ({1}, set())
    assert "**0.100**" in to_markdown([table])
    assert Table("t", (LOWER,), [("a", [one(0.2)]), ("c", [one(None)])], "").best(0) == set()


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
    rows = list(csv.DictReader(io.StringIO(to_csv([Table(title, (LOWER,), [("a", [one(mean)])], "")]), newline="")))
    assert len(rows) == 1
    assert rows[0]["table"] == title
    assert float(rows[0]["mean"]) == mean


def test_every_special_character_is_escaped() -> None:
    text = to_latex([Table(r"50% & $1 #2 a_b {c} ~ ^ \x", (LOWER,), [("a", [Value(1, 2, 2, 2)])], "")])
    assert r"50\% \& \$1 \#2 a\_b \{c\} \textasciitilde{} \textasciicircum{} \textbackslash{}x" in text
    assert r"1.000 $\pm$ 2.000" in text
