"""`torchrun -m benchmarks.cli run SUITE`: the processes share particles, the records are those of one process to rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import workers


def test_a_suite_on_two_processes(tmp_path: Path) -> None:
    suite = tmp_path / "tiny.yaml"
    suite.write_text(json.dumps({**workers.SUITE, "methods": ["bella-single", "bella-svgd"]}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = workers.start(json.loads(suite.read_text()), tmp_path / "one", tmp_path / "log", 60.0)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words += ["-m", "benchmarks.cli", "run", str(suite), "--out", str(tmp_path / "two")]
    for _ in range(2):  # a second time nothing is to do
        done = subprocess.run(words, env=environment, text=True, capture_output=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("### random-images: Costs") == 1  # the leading process prints
    assert "done before" in done.stderr
    alone.join()
    assert alone.exitcode == 0
    records: dict[str, Any] = {
        out: {r["run"]["method"]: r for r in (json.loads(p.read_text()) for p in (tmp_path / out).rglob("record.json"))}
        for out in ("one", "two")
    }
    assert {method: record["environment"]["processes"] for method, record in records["two"].items()} == {
        "bella-single": 1,  # one particle cannot be split
        "bella-svgd": 2,
    }
    for method, record in records["one"].items():
        other = records["two"][method]
        assert record["run"]["hash"] == other["run"]["hash"]
        assert record["tasks"]["classification"]["nll"] == pytest.approx(other["tasks"]["classification"]["nll"], rel=1e-4)
    assert records["one"]["bella-single"]["tasks"] == records["two"]["bella-single"]["tasks"]
