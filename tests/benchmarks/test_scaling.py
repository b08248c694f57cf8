"""What a step costs on many devices: the arithmetic, and the measurements it starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bella.errors import UserError
from benchmarks import scaling
from benchmarks.cli import app
from benchmarks.publish import publish
from benchmarks.scaling import Measured, pays_up_to

COSTS = Measured(fixed=0.5, particle=1.0, rule=2.0, latency=0.25, bandwidth=100.0, gathered_bytes=400)


def test_a_step_is_its_parts() -> None:
    assert COSTS.step(10, 1) == {"passes": 10.5, "gather": 0.0, "rule": 2.0, "step": 12.5}
    # 10 particles over 4 devices: at most 3 each; three quarters of 400 + 8 * 10^2 bytes arrive, twice
    assert COSTS.step(10, 4) == {"passes": 3.5, "gather": 0.75 + 18.0, "rule": 0.5, "step": 22.75}


def test_where_doubling_stops_paying() -> None:
    free = Measured(0.0, 1.0, 0.0, 0.0, 1e30, 400)
    assert pays_up_to(free, 64) == 64  # nothing but passes: always
    assert pays_up_to(COSTS, 10) == 1  # 12.5 s on one; on two 5.5 + 12.75 + 1
    assert pays_up_to(Measured(4.0, 1.0, 0.0, 0.0, 1e30, 400), 64) == 32  # 8 s on 16, 6 on 32, 5 on 64


def test_measured_and_published(tmp_path: Path) -> None:
    source = tmp_path / "measured"
    source.mkdir()
    words = [
        "scaling",
        "timm:mobilenetv3_small_050",
        "--image-size",
        "32",
        "--particles",
        "8",
        "--devices",
        "1,4",
        "--repeats",
        "1",
    ]
    shown = CliRunner().invoke(app, [*words, "--out", str(source / "scaling.json")])
    assert shown.exit_code == 0, shown.output
    found = json.loads((source / "scaling.json").read_text())
    assert found["measured"]["gathered_bytes"] == 4 * 8 * scaling.speed.numbers_of_a_particle(
        scaling.Setting("timm:mobilenetv3_small_050", 8, image_size=32)
    )
    assert found["measured"]["bandwidth"] > 1e6
    assert found["rows"][0]["step"] == pytest.approx(Measured(**found["measured"]).step(8, 1)["step"])
    assert "| 4 | 2 |" in shown.stdout
    page = (publish(source, tmp_path / "results") / "speed.md").read_text()
    assert found["command"] in page
    assert "| 4 | 2 |" in page


def test_more_devices_than_particles_are_refused() -> None:
    shown = CliRunner().invoke(app, ["scaling", "timm:mobilenetv3_small_050", "--particles", "4", "--devices", "8"])
    assert isinstance(shown.exception, UserError)
