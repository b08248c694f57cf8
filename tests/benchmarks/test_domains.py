"""Leave-one-domain-out: the left-out domain is never learned, and mean and worst are over domains."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bella.errors import UserError
from benchmarks import cli
from benchmarks.images import ImageSplit
from benchmarks.problems.domainfolder import DomainFolder, DomainFolderOptions


@pytest.fixture
def root(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for place, domain in enumerate(("photo", "sketch", "paint")):
        for name, shade in (("dark", 20), ("light", 220)):
            folder = tmp_path / "data" / domain / name
            folder.mkdir(parents=True)
            for i in range(10):
                pixels = np.clip(random.normal(shade, 10 + 10 * place, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "data"


def test_the_left_out_domain_is_the_test_split_alone(root: Path) -> None:
    data = DomainFolder().load(DomainFolderOptions(data=root, held_out="sketch", image_size=32))
    assert all(id_.startswith("sketch/") for id_ in data.test.ids)
    assert len(data.test) == 20
    seen = [*data.training.ids, *data.validation.ids]
    assert not any(id_.startswith("sketch/") for id_ in seen)
    assert set(data.further) == {"domain-photo", "domain-sketch", "domain-paint"}
    photo = data.further["domain-photo"]
    assert isinstance(photo, ImageSplit)
    assert set(photo.ids).isdisjoint(seen)
    assert sorted(photo.targets.tolist()) == [0, 0, 1, 1]
    assert len(data.training) == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": None}, "name the domain"),
        ({"held_out": "sketsh"}, "did you mean 'sketch'"),
        ({"data": None}, "needs a folder"),
    ],
)
def test_what_is_missing_is_said(root: Path, changes: dict[str, str | None], message: str) -> None:
    options = DomainFolderOptions.model_validate({"data": root, "held_out": "sketch", **changes})
    with pytest.raises(UserError, match=message):
        DomainFolder().load(options)


def test_each_domain_in_turn_makes_rows(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [{"problem": "domainfolder", "settings": {"data": str(root), "held_out": d}} for d in ("photo", "sketch")]
    suite = {
        "methods": ["bella-single"],
        "problems": entries,
        "tasks": ["domain"],
        "settings": {"image_size": 32, "epochs": 1, "backbone": "timm:mobilenetv3_small_050?random"},
    }
    (tmp_path / "s.yaml").write_text(json.dumps(suite))
    monkeypatch.setattr("sys.argv", ["bella", "run", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("runs/*/*/*/record.json")]
    assert len(records) == 2
    for record in records:
        found = record["tasks"]["domain"]
        accuracies = [found[f"{domain}/accuracy"] for domain in ("photo", "sketch", "paint")]
        assert found["mean/accuracy"] == pytest.approx(sum(accuracies) / 3)
        assert found["worst/accuracy"] == min(accuracies)
        assert found["test/accuracy"] == found[f"{record['run']['config']['data']['held_out']}/accuracy"]
    assert "held_out=photo" in (tmp_path / "out" / "tables.md").read_text()
