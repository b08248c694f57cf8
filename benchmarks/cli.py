"""The `bella` command. Heavy imports wait inside the commands, so that `bella list` is instant."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

from bella.errors import UserError, suggest
from benchmarks.console import print_backbone_costs, print_claims, print_tables, say_failures, show_plan
from benchmarks.registries import ALL

app = typer.Typer(
    name="bella",
    help="Benchmark and reproducibility suite for Bayesian low-rank learning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]


@app.command("list")
def list_names(
    kind: Annotated[
        str | None, typer.Argument(help="methods, tasks, problems, backbones or suites; all of them if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what is registered."""
    if kind is not None and kind not in ALL:
        raise UserError(f"unknown kind {kind!r}: {suggest(kind, ALL)}")
    shown = {name: registry.entries().values() for name, registry in ALL.items() if kind in (None, name)}
    if as_json:
        plain = {
            name: [{"name": e.name, "summary": e.summary, "origin": e.origin} for e in entries] for name, entries in shown.items()
        }
        print(json.dumps(plain, indent=1))
        return
    for name, entries in shown.items():
        table = RichTable(title=name, title_justify="left", box=None, show_header=False, padding=(0, 2))
        for entry in entries:
            table.add_row(entry.name, entry.summary)
        Console().print(table, "")


@app.command()
def run(
    suite: Annotated[str, typer.Argument(help="A suite's name (`bella list suites`), or a YAML file.")],
    methods: Annotated[str | None, typer.Option(help="Only these: labels of rows, or methods with all their rows: a,b.")] = None,
    problems: Annotated[str | None, typer.Option(help="Only these problems: a,b.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Only these tasks: a,b.")] = None,
    seeds: Annotated[str | None, typer.Option(help="These seeds: 0,1,2.")] = None,
    out: Annotated[Path | None, typer.Option(help="Results folder [default: out/SUITE].")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting for all runs; may be given several times.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    executor: Annotated[str, typer.Option(help="local: this process; ray: a Ray cluster.")] = "local",
    cores: Annotated[int | None, typer.Option(min=1, help="Cores a run asks a cluster for [default: a node's].")] = None,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs a run asks a cluster for [default: 1 or 0].")] = None,
    checkpoint_every: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints of a training.")] = 60.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and what each would do; do nothing.")] = False,
) -> None:
    """Run a suite. Finished runs are found and not done again, interrupted ones go on, failed ones are tried again."""
    from benchmarks.plan import make_plan
    from benchmarks.settings import parse_assignments
    from benchmarks.suite import load_suite, narrow, with_overrides

    chosen = narrow(load_suite(suite), _words(methods), _words(tasks), _numbers(seeds, "--seeds"), _words(problems))
    overrides = parse_assignments(assignments or [])
    runs = make_plan(chosen, overrides, complete=False)
    folder = out or Path("out") / chosen.name
    from benchmarks.environment import pick_device

    if dry_run:
        show_plan(runs, folder, on_gpu=pick_device(device).type == "cuda")
        return

    if all(run.missing is not None for run in runs):
        raise UserError(str(runs[0].missing))
    from benchmarks.executors import EXECUTORS, Terms, run_suite
    from benchmarks.progress import Progress

    if executor not in EXECUTORS:
        raise UserError(f"--executor {executor}: {suggest(executor, EXECUTORS)}")
    pick_device(device)  # refuses a name that is none
    terms = Terms(device, checkpoint_every, cores, gpus)
    with Progress() as progress:
        outcomes = run_suite(with_overrides(chosen, overrides), runs, folder, terms=terms, progress=progress, executor=executor)
    failed = [outcome for outcome in outcomes if outcome.failure is not None]
    if len(failed) < len(outcomes):
        _write_results(folder)
    if failed:
        say_failures(failed, len(outcomes))
        raise typer.Exit(1)


def _write_results(folder: Path) -> None:
    """Tables, figures and report of a results folder; the tables are printed as well."""
    from benchmarks import tables
    from benchmarks.records import write_text
    from benchmarks.report import write_report

    made = tables.make_tables(folder)
    print_tables(made)
    try:
        for ending, form in tables.FORMS.items():
            write_text(folder / f"tables.{ending}", form(made))
        write_report(folder, made)
    except OSError as error:
        raise UserError(f"{folder}: tables cannot be written: {error}; `bella report {folder}` writes them later") from error
    Console(stderr=True, highlight=False).print(
        f"Written: {folder}/tables.md, .tex, .csv, figures/*.svg, report.html", soft_wrap=True
    )


@app.command("tables")
def show_tables(
    folder: Annotated[Path, typer.Argument(help="A results folder.", metavar="DIR")],
    formats: Annotated[str | None, typer.Option("--format", help="md, tex, csv, or several: md,tex.")] = None,
    to: Annotated[Path | None, typer.Option(help="Write tables.md, ... into this folder instead of printing.")] = None,
) -> None:
    """Print the tables of stored records."""
    from benchmarks import tables
    from benchmarks.records import write_text

    names = tables.parse_formats(formats) if formats is not None else None
    made = tables.make_tables(folder)
    if to is not None:
        try:
            for name in names or list(tables.FORMS):
                write_text(to / f"tables.{name}", tables.FORMS[name](made))
        except OSError as error:
            raise UserError(f"--to {to}: cannot be written: {error}; choose another folder") from error
    elif names is None:
        print_tables(made)
    else:
        for name in names:
            print(tables.FORMS[name](made), end="")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A results folder.", metavar="DIR")]) -> None:
    """Write DIR/report.html, one self-contained page, and DIR/figures/*.svg, from stored records and logits."""
    from benchmarks.report import write_report

    try:
        print(write_report(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error}") from error


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="A results folder.", metavar="DIR")],
    to: Annotated[Path, typer.Option(help="Where the published results live.")] = Path("results"),
) -> None:
    """Copy a suite's records and tables (no particles) to results/SUITE."""
    from benchmarks.publish import publish as publish_folder

    print(publish_folder(folder, to))


@app.command()
def costs(
    target: Annotated[str, typer.Argument(help="A backbone (open_clip:ViT-B-32, ...) or a suite (paper-costs). Needs no weights.")],
    particles: Annotated[int, typer.Option(min=1, help="n, for a backbone.")] = 5,
    rank: Annotated[str, typer.Option(help="r, or several: 1,2,4,8,16; for a backbone.")] = "4",
    targets: Annotated[
        str | None, typer.Option(help="Patterns of adapted layers: c_fc,c_proj [default: the backbone's]; for a backbone.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=2, help="Classes of a head trained in each particle; none if left out; for a backbone.")
    ] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Of a suite: take steps with random weights where they fit.")] = False,
    longest: Annotated[float, typer.Option(help="Measure no step that is estimated to take more seconds.")] = 60.0,
    out: Annotated[
        Path | None, typer.Option(help="Of a suite: write costs.md and costs.json there, row by row; `bella publish` takes them.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of a suite: a setting for all runs.")
    ] = None,
    device: Annotated[str, typer.Option(help="Of a suite: auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Count parameters and bytes of a backbone's particles, or what the runs of a suite cost."""
    if ":" in target:
        print_backbone_costs(target, particles, _numbers(rank, "--rank") or [4], _words(targets), classes, as_json)
        return
    from benchmarks.environment import pick_device
    from benchmarks.progress import track
    from benchmarks.settings import parse_assignments
    from benchmarks.suite import load_suite
    from benchmarks.suite_costs import suite_costs, suite_markdown

    suite = load_suite(target)
    overrides = parse_assignments(assignments or [])
    try:
        found = suite_costs(
            suite, overrides, device=pick_device(device), measure=measure, longest=longest, folder=out, progress=track
        )
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error}; choose another folder with --out") from error
    print(json.dumps(found, indent=1) if as_json else suite_markdown(found), end="")


@app.command()
def claims(
    folder: Annotated[Path, typer.Argument(help="A results folder, or a folder of such folders.", metavar="DIR")] = Path("results"),
    as_json: Json = False,
) -> None:
    """Print the paper's claims, each with our figure and whether it holds."""
    import dataclasses

    from benchmarks.claims import findings

    found = findings(folder)
    if as_json:
        print(json.dumps({"claims": [dataclasses.asdict(finding) for finding in found]}, indent=1))
        return
    print_claims(found)


@app.command()
def speed(
    backbone: Annotated[str, typer.Argument(help="open_clip:ViT-B-32, ... Weights are random.")],
    particles: Annotated[int, typer.Option(min=1, help="n.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="b.")] = 8,
    rank: Annotated[int, typer.Option(min=1, help="r.")] = 4,
    targets: Annotated[str | None, typer.Option(help="Patterns of adapted layers [default: the backbone's].")] = None,
    image_size: Annotated[int, typer.Option(min=8, help="S.")] = 224,
    chunk_size: Annotated[int | None, typer.Option(min=1, help="Particles computed at once [default: all].")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the same batches: features in front are computed once.")] = 1,
    batches: Annotated[int, typer.Option(min=1, help="Batches of an epoch.")] = 1,
    predict: Annotated[bool, typer.Option("--predict", help="Time predictions instead of training steps.")] = False,
    contenders: Annotated[str | None, typer.Option(help="Only these: bella,peft,copies,full_rank,one,limit.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds after the first, of which the median counts.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the JSON into this file as well.")] = None,
    as_json: Json = False,
) -> None:
    """Time a training step against PEFT's, deep copies', full-rank particles', and the limit."""
    from benchmarks.environment import pick_device
    from benchmarks.progress import track
    from benchmarks.speed import CONTENDERS, Setting, measure, speed_lines

    names = _words(contenders) or list(CONTENDERS)
    for name in names:
        if name not in CONTENDERS:
            raise UserError(f"--contenders {name}: {suggest(name, CONTENDERS)}")
    chosen = _words(targets)
    setting = Setting(
        backbone=backbone,
        particles=particles,
        batch_size=batch_size,
        rank=rank,
        targets=None if chosen is None else tuple(chosen),
        image_size=image_size,
        chunk_size=chunk_size,
        epochs=epochs,
        batches=batches,
        predict=predict,
        device=pick_device(device).type,
    )
    _give(measure(setting, names, repeats, track), speed_lines, out, as_json)


@app.command("scaling")
def print_scaling(
    backbone: Annotated[str, typer.Argument(help="open_clip:ViT-B-32, ... Weights are random.")],
    particles: Annotated[int, typer.Option(min=1, help="n.")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1, help="b.")] = 8,
    rank: Annotated[int, typer.Option(min=1, help="r.")] = 4,
    image_size: Annotated[int, typer.Option(min=8, help="S.")] = 224,
    devices: Annotated[str, typer.Option(help="Numbers of devices: 1,2,4.")] = "1,2,4,8,16,32,64",
    chunk_size: Annotated[int | None, typer.Option(min=1, help="Particles computed at once on a device [default: 5].")] = 5,
    bandwidth: Annotated[float | None, typer.Option(help="GB/s between devices [default: measured here].")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements after the first, of which the median counts.")] = 3,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the JSON into this file as well.")] = None,
    as_json: Json = False,
) -> None:
    """Work out what a step costs on many devices, from costs measured on this one, and where more stop paying."""
    from benchmarks.environment import pick_device
    from benchmarks.scaling import scaling, scaling_lines
    from benchmarks.speed import Setting

    setting = Setting(
        backbone=backbone,
        particles=particles,
        batch_size=batch_size,
        rank=rank,
        image_size=image_size,
        chunk_size=chunk_size,
        device=pick_device(device).type,
    )
    counts = _numbers(devices, "--devices") or [1]
    found = scaling(setting, counts, repeats, None if bandwidth is None else 1e9 * bandwidth)
    _give(found, scaling_lines, out, as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run's folder: out/SUITE/runs/PROBLEM/METHOD/SEED.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="Gets a folder or a file a particle.")],
    to: Annotated[str, typer.Option(help="The format: peft or checkpoint.")] = "peft",
) -> None:
    """Write a run's particles: as PEFT adapters, or as whole networks that a backbone's ?checkpoint=FILE takes."""
    from benchmarks.export import FORMATS

    if to not in FORMATS:
        raise UserError(f"--to {to}: {suggest(to, FORMATS)}")
    for written in FORMATS[to](run, out):
        print(written)


@app.command()
def download(
    problem: Annotated[str, typer.Argument(help="A problem's name (`bella list problems`).")],
    data: Annotated[
        Path | None, typer.Option(help="Into this folder; left out: $BELLA_DATA/PROBLEM, or ~/.cache/bella/data/PROBLEM.")
    ] = None,
) -> None:
    """Fetch a problem's data, verify and unpack them; nothing that is here is fetched again."""
    from benchmarks.downloads import download as fetch_problem

    print(fetch_problem(problem, data))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, and how to get what is missing."""
    from benchmarks.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps({"findings": findings}, indent=1))
        return
    table = RichTable(box=None, show_header=False, padding=(0, 2))
    for finding in findings:
        colour = "green" if finding["state"] == "ok" else "yellow"
        table.add_row(f"[{colour}]{finding['state']}[/]", finding["what"], finding["detail"])
    Console().print(table)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"bella: {error}", file=sys.stderr)
        sys.exit(2)


def _give(found: dict[str, Any], lines: Callable[[dict[str, Any]], list[str]], out: Path | None, as_json: bool) -> None:
    """A measurement: into a file where one is named, and printed."""
    from benchmarks.records import write_text

    text = json.dumps(found, indent=1)
    if out is not None:
        try:
            write_text(out, text + "\n")
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error}; choose another file") from error
    print(text if as_json else "\n".join(lines(found)))


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str | None, option: str) -> list[int] | None:
    words = _words(text)
    try:
        return None if words is None else [int(word) for word in words]
    except ValueError as error:
        raise UserError(f"{option} {text}: whole numbers with commas between them") from error


if __name__ == "__main__":
    main()
