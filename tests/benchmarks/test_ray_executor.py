"""Runs on a Ray cluster of several nodes on this machine, which are killed mid-run."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import workers

from bella.errors import UserError
from bella.resume import CHECKPOINT
from benchmarks.executors import Terms, run_suite
from benchmarks.plan import make_plan
from benchmarks.progress import Progress
from benchmarks.ray_executor import _share
from benchmarks.suite import Suite

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that does no runs, and three nodes of a core each."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.workers = [made.add_node(num_cpus=1) for _ in range(3)]
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_suite_survives_the_loss_of_nodes(cluster: Any, tmp_path: Path) -> None:
    changed = {**workers.SUITE, "settings": {**workers.SUITE["settings"], "epochs": 12}}
    alone, out = tmp_path / "alone", tmp_path / "out"
    process = workers.start(changed, alone, tmp_path / "log", 1000.0)
    process.join()
    assert process.exitcode == 0
    killed = threading.Event()

    def kill_nodes() -> None:
        """Two of three nodes, two of which are at work: at least one run is lost."""
        while not list(out.rglob(CHECKPOINT)):
            time.sleep(0.02)
        for node in cluster.workers[:2]:
            cluster.remove_node(node, allow_graceful=False)
        if list(out.rglob(CHECKPOINT)):
            killed.set()

    killer = threading.Thread(target=kill_nodes, daemon=True)
    killer.start()
    suite = Suite.model_validate(changed)
    with Progress() as progress:
        outcomes = run_suite(suite, make_plan(suite), out, terms=Terms("cpu", 0.0), progress=progress, executor="ray")
    killer.join()
    assert killed.is_set()
    assert [(outcome.trained, outcome.failure) for outcome in outcomes] == [(True, None)] * 2
    for path in out.rglob("record.json"):
        found, expected = (json.loads((folder / path.relative_to(out)).read_text()) for folder in (out, alone))
        assert found["tasks"] == expected["tasks"]
        assert found["environment"]["threads"] == 1
    assert len(list(out.rglob("record.json"))) == 2
    with Progress() as progress:  # nothing is done again
        again = run_suite(suite, make_plan(suite), out, terms=Terms("cpu"), progress=progress, executor="ray")
    assert not any(outcome.trained for outcome in again)


def test_a_run_that_fails_on_the_cluster_is_told(cluster: Any, tmp_path: Path) -> None:
    wild = {"method": "ensemble", "settings": {"learning_rate": 1e30, "clip_norm": None, "prior_std": 1e-6}}
    suite = Suite.model_validate({**workers.SUITE, "methods": [wild]})
    with Progress() as progress:
        (outcome,) = run_suite(suite, make_plan(suite), tmp_path, terms=Terms("cpu"), progress=progress, executor="ray")
    assert "lower learning_rate" in str(outcome.failure)
    assert list(tmp_path.rglob("failure.json"))


def test_what_a_run_asks_for() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    assert _share(nodes, Terms()) == ("cuda", 8, 1.0)
    assert _share(nodes, Terms("cpu")) == ("cpu", 4, 0.0)
    assert _share(nodes, Terms("cuda", cores=2, gpus=0.5)) == ("cuda", 2, 0.5)
    with pytest.raises(UserError, match="has 16 cores and 0 GPUs"):
        _share(nodes, Terms("cpu", cores=16))
    with pytest.raises(UserError, match="1 cores and 4 GPUs"):
        _share(nodes, Terms(gpus=4))
