"""A record is written whole or not at all, and read whole or refused."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bella import files
from bella.errors import UserError
from benchmarks.records import FILE, Record, RunInfo, read_record, write_record
from benchmarks.stored import find_runs


def make_record() -> Record:
    return Record(
        schema_=1,
        run=RunInfo(
            problem="p", method="m", label="l", seed=0, backbone="b", weights="w", data="d", hash="0", config={"particles": 1}
        ),
        training={"losses": [1.0]},
        tasks={"classification": {"accuracy": 0.1 + 0.2, "nll": None}},
        task_results={},
        costs={"stored_bytes": 2**60, "peak_memory_source": "process", "ratio": 1e-17},
        environment={},
    )


def test_a_failing_write_leaves_the_old_record_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(make_record(), tmp_path)
    before = (tmp_path / FILE).read_bytes()
    changed = make_record()
    changed.run.label = "another"

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_record(changed, tmp_path)
    assert (tmp_path / FILE).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_numbers_survive_to_the_last_digit(tmp_path: Path) -> None:
    write_record(make_record(), tmp_path)
    found = read_record(tmp_path / FILE)
    assert found.tasks["classification"] == {"accuracy": 0.1 + 0.2, "nll": None}
    assert found.costs == {"stored_bytes": 2**60, "peak_memory_source": "process", "ratio": 1e-17}
    assert isinstance(found.costs["stored_bytes"], int)


def test_nan_is_neither_written_nor_read(tmp_path: Path) -> None:
    for place in ("training", "environment"):  # untyped parts, which the model does not look into
        record = make_record()
        getattr(record, place)["loss"] = math.nan
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_record(record, tmp_path)
        assert not list(tmp_path.iterdir())
    write_record(make_record(), tmp_path)
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text().replace("null", "NaN"))
    with pytest.raises(UserError, match=r"record\.json: a damaged record \(tasks\.classification\.nll"):
        read_record(tmp_path / FILE)


@pytest.mark.parametrize("key", ["run", "training", "tasks", "task_results", "costs", "environment"])
def test_a_missing_or_an_unknown_part_is_named(key: str, tmp_path: Path) -> None:
    write_record(make_record(), tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    part = content.pop(key)
    (tmp_path / FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"record\.json: a damaged record \({key}: "):
        read_record(tmp_path / FILE)
    (tmp_path / FILE).write_text(json.dumps({**content, key: part, "more": 1}))
    with pytest.raises(UserError, match=r"\(more: "):
        read_record(tmp_path / FILE)


def test_bytes_that_are_no_text_are_a_damaged_record(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "p" / "l" / "seed0"
    write_record(make_record(), folder)
    assert len(find_runs(tmp_path)) == 1
    (folder / FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"seed0/record\.json: a damaged record"):
        find_runs(tmp_path)


@given(st.data())
def test_a_flipped_bit_or_a_cut_end_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / FILE
        write_record(make_record(), path.parent)
        content = bytearray(path.read_bytes())
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content) - 1))]
        else:
            bit = data.draw(st.integers(0, 8 * len(content) - 1))
            content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            assert read_record(path) == make_record()  # white space


@pytest.mark.parametrize("name", ["problem", "method", "label"])
def test_names_that_climb_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    """Figures are called by them; the checksum is right, so the record has been made so."""
    record = make_record()
    setattr(record.run, name, "../../../escaped")
    write_record(record, tmp_path)
    with pytest.raises(UserError, match="a name has letters"):
        read_record(tmp_path / FILE)


def test_records_without_a_checksum_are_read_and_other_schemas_refused_by_name(tmp_path: Path) -> None:
    write_record(make_record(), tmp_path)
    content = json.loads((tmp_path / FILE).read_text())
    del content["checksum"]
    (tmp_path / FILE).write_text(json.dumps(content))
    assert read_record(tmp_path / FILE) == make_record()
    for schema in (0, 2, "1", None):
        (tmp_path / FILE).write_text(json.dumps({**content, "schema": schema}))
        with pytest.raises(UserError, match=f"record schema {schema!r}, this version reads 1"):
            read_record(tmp_path / FILE)
