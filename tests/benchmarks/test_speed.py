"""`bella speed` runs every contender and says what it measured; how fast they are is no test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bella.errors import UserError
from benchmarks import speed
from benchmarks.cli import app
from benchmarks.publish import publish

TINY = ["timm:vit_tiny_patch16_224", "--particles", "2", "--batch-size", "2", "--image-size", "32", "--device", "cpu"]


def test_every_contender_is_timed_and_weighed(tmp_path: Path) -> None:
    out = tmp_path / "tiny.json"
    shown = CliRunner().invoke(app, ["speed", *TINY, "--repeats", "1", "--out", str(out), "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert json.loads(out.read_text()) == found
    assert set(found["seconds"]) == set(speed.CONTENDERS)
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert all(peak > 0 for peak in found["peak_memory_bytes"].values())
    for name, ratio in found["ratios"].items():
        assert ratio == pytest.approx(found["seconds"]["bella"] / found["seconds"][name])
    assert 0 < found["svgd_share"] < 1


@pytest.mark.parametrize("options", [["--predict"], ["--epochs", "2", "--batches", "2", "--targets", "blocks.11.mlp.*"]])
def test_predictions_and_epochs(options: list[str]) -> None:
    shown = CliRunner().invoke(app, ["speed", *TINY, *options, "--contenders", "bella,peft", "--repeats", "1"])
    assert shown.exit_code == 0, shown.output
    assert "| peft |" in shown.stdout
    assert ("SVGD:" in shown.stdout) == ("--predict" not in options)


def test_measurements_are_published_with_their_commands(tmp_path: Path) -> None:
    source = tmp_path / "measured"
    arguments = ["speed", *TINY, "--contenders", "bella,limit", "--repeats", "1", "--out", str(source / "tiny.json")]
    source.mkdir()
    assert CliRunner().invoke(app, arguments).exit_code == 0
    published = publish(source, tmp_path / "results")
    assert {p.name for p in published.iterdir()} == {"tiny.json", "speed.md"}
    page = (published / "speed.md").read_text()
    assert "bella speed timm:vit_tiny_patch16_224" in page
    assert "| limit |" in page
    (source / "other.json").write_text("[]")
    with pytest.raises(UserError, match=r"other\.json: no measurement"):
        publish(source, tmp_path / "results")


def test_the_command_of_a_measurement_names_what_is_not_the_default() -> None:
    setting = speed.Setting("open_clip:ViT-B-32", 20, targets=("c_fc", "blocks.*.c_proj"), predict=True)
    expected = (
        "bella speed open_clip:ViT-B-32 --particles 20 --targets 'c_fc,blocks.*.c_proj' --predict --contenders bella --repeats 3"
    )
    assert speed.command_line(setting, ["bella"], 3) == expected


def test_what_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "available_bytes", lambda device: 40e6)  # theta_0 has 22 MB
    setting = speed.Setting("timm:vit_tiny_patch16_224", 2, 2, image_size=32)
    found = speed.measure(setting, ["limit", "copies", "full_rank"], 1)
    assert found["seconds"]["limit"] is not None
    assert found["seconds"]["full_rank"] is found["seconds"]["copies"] is None
    assert "| full_rank | does not fit |" in "\n".join(speed.speed_lines(found))


def test_mistakes_are_one_line() -> None:
    shown = CliRunner().invoke(app, ["speed", *TINY, "--contenders", "pefd"])
    assert isinstance(shown.exception, UserError)
    assert "did you mean 'peft'" in str(shown.exception)
