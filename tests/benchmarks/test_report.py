"""The report in a real browser: it sorts, filters, fetches nothing and logs no error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Stored, store_runs
from matplotlib.backends.backend_agg import FigureCanvasAgg

from benchmarks.figures import make_figures, styles
from benchmarks.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("report")
    rows = [("ensemble", 0.7), ("bella-svgd", 0.9), ("single", 0.8)]
    store_runs(made, [Stored(label, seed, accuracy + 0.01 * seed) for label, accuracy in rows for seed in (0, 1)])
    write_report(made)
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"],
        )
        yield started
        started.close()


def opened(browser: Any, folder: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    page = browser.new_page(**options)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((folder / "report.html").as_uri())
    return page, asked, errors


def test_sorting_filtering_and_silence(browser: Any, folder: Path) -> None:
    page, asked, errors = opened(browser, folder)
    column = page.locator("#leaderboard th", has_text="Acc. (%)").first
    place = column.evaluate("head => head.cellIndex")

    def shown() -> list[str]:
        return page.locator("#leaderboard tbody tr").evaluate_all("rows => rows.map(row => row.cells[0].textContent)")

    column.get_by_role("button").click()
    assert shown() == ["ensemble", "single", "bella-svgd"]
    column.get_by_role("button").click()
    assert shown() == ["bella-svgd", "single", "ensemble"]
    values = page.locator("#leaderboard tbody tr").evaluate_all(
        f"rows => rows.map(row => Number(row.cells[{place}].dataset.value))"
    )
    assert values == pytest.approx([0.905, 0.805, 0.705])

    before = page.locator("section:visible").count()
    page.select_option("#task", "costs")
    assert 0 < page.locator("section:visible").count() < before
    assert page.locator("section[data-task=classification]:visible").count() == 0
    assert page.locator("#leaderboard th[data-task=classification]:visible").count() == 0
    page.select_option("#task", "")
    assert page.locator("section:visible").count() == before

    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_and_text_stands_out(browser: Any, folder: Path, scheme: str) -> None:
    page, _, errors = opened(browser, folder, viewport={"width": 375, "height": 700}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    light, dark = sorted((sum(int(part) for part in c[4:-1].split(",")) for c in colours), reverse=True)
    assert light > 660
    assert dark < 140
    assert errors == []


def test_what_is_shown_is_escaped(tmp_path: Path) -> None:
    store_runs(tmp_path, [Stored("single", 0, 0.5, data="<script>alert(1)</script>")])
    page = write_report(tmp_path).read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_many_rows_stay_apart_and_no_legend_is_cut_off(tmp_path: Path) -> None:
    labels = [f"bella-svgd-with-a-long-name-{i}" for i in range(10, 30)]
    store_runs(tmp_path, [Stored(label, 0, 0.5) for label in labels])
    looks = {(look["color"], look["marker"]) for look in styles(dict.fromkeys(map(str, range(64)), ())).values()}
    assert len(looks) == 64
    for name in ("reliability", "risk-coverage", "parameters"):
        figure = make_figures(tmp_path)[f"digits-{name}"].drawing
        FigureCanvasAgg(figure).draw()
        legends = [*figure.legends, *(found for axes in figure.axes if (found := axes.get_legend()) is not None)]
        assert [text.get_text() for legend in legends for text in legend.get_texts()] == labels
        for box in (legend.get_window_extent() for legend in legends):
            assert min(box.x0, box.y0) >= 0, name
            assert (box.x1 <= figure.bbox.x1, box.y1 <= figure.bbox.y1) == (True, True), name
        assert all(axes.get_position().height * figure.get_figheight() > 1.8 for axes in figure.axes)
        assert all(len(axes.get_lines()) <= 9 for axes in figure.axes) or name == "parameters"


def test_figures_are_drawn_from_stored_logits_only(folder: Path, tmp_path: Path) -> None:
    names = set(make_figures(folder))
    assert {"digits-reliability", "digits-risk-coverage", "digits-parameters", "digits-distances", "digits-disagreement"} <= names
    published = tmp_path / "published"
    shutil.copytree(folder, published, ignore=shutil.ignore_patterns("*.safetensors"))
    assert set(make_figures(published)) == {"digits-parameters"}
