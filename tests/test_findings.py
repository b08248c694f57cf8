"""docs/findings.md says nothing of numbers that the published tables do not print."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def decimals(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.]*\d)", text))


def test_every_decimal_stands_in_a_published_table() -> None:
    tables = " ".join(path.read_text() for path in (ROOT / "results").glob("cifar10*/tables.md"))
    said = decimals(re.sub(r"arXiv \d+\.\d+", "", (ROOT / "docs" / "findings.md").read_text()))
    assert len(said) > 100
    assert said <= decimals(tables)
