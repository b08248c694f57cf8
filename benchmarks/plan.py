"""From a suite to its runs: which methods, problems, tasks and seeds make one table, and what every run is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bella.errors import UserError
from bella.fit import Recipe
from bella.lowrank import plan_adapters
from bella.registry import BrokenEntry, Registry
from benchmarks import settings as named
from benchmarks.backbones import Weights, architecture, parse
from benchmarks.methods import Method
from benchmarks.options import Options
from benchmarks.problem import Problem
from benchmarks.records import check_name, config_hash
from benchmarks.registries import METHODS, PROBLEMS, TASKS
from benchmarks.suite import MethodEntry, ProblemEntry, Suite, TaskEntry, validated


@dataclass(frozen=True)
class TaskPlan:
    """A task of a run: its name, its options, and the hash that says whether a stored result answers them."""

    name: str
    options: dict[str, Any]
    hash: str


@dataclass(frozen=True)
class Run:
    """One training and the tasks that its posterior serves, every default resolved.

    Attributes:
        problem: its name.
        method: its name.
        label: how tables call it.
        seed: k.
        backbone: theta_0's name.
        weights: which weights those are.
        particles: n.
        head: "trained" or "zero-shot".
        recipe: how to train.
        particle_options: for the parameterisation.
        inference_options: for the inference rule.
        data_options: for the problem.
        fingerprint: of the data.
        chunk_size: particles computed at once; None: the parameterisation decides. Not in the hash.
        tasks: what is asked.
        revision: the method's.
        missing: what of the data is not here and how to get it; None: nothing.
    """

    problem: str
    method: str
    label: str
    seed: int
    backbone: str
    weights: Weights
    particles: int
    head: str
    recipe: Recipe
    particle_options: dict[str, Any]
    inference_options: dict[str, Any]
    data_options: Options
    fingerprint: str
    chunk_size: int | None
    tasks: tuple[TaskPlan, ...]
    revision: int
    missing: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """What determines the trained particles, as plain data."""
        return {
            "problem": self.problem,
            "data": self.data_options.model_dump(mode="json", exclude={"data", "description"}),
            "data_fingerprint": self.fingerprint,
            "backbone": self.backbone.partition("?")[0],
            "weights": self.weights.checksum,
            "method": self.method,
            "particles": self.particles,
            "head": self.head,
            "recipe": dataclasses.asdict(self.recipe),
            # What is None is left out: an option that is new does not make other runs of the earlier ones.
            "parameterisation": {name: value for name, value in self.particle_options.items() if value is not None},
            "inference": self.inference_options,
            "seed": self.seed,
            "revision": self.revision,
        }

    @property
    def hash(self) -> str:
        """10 hexadecimal digits of the configuration's hash."""
        return config_hash(self.config)

    @property
    def title(self) -> str:
        """How a user is told of the run."""
        return f"{self.problem} / {self.label} / seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Where the run's files lie, under the suite's folder."""
        return Path("runs") / self.problem / self.label / f"seed{self.seed}-{self.hash}"


def make_plan(suite: Suite, overrides: Mapping[str, Any] | None = None, *, complete: bool = True) -> list[Run]:
    """Every run of a suite, in the order they are done: problem by problem, seed by seed.

    Args:
        suite: what to plan.
        overrides: settings that win over the suite's.
        complete: refuse runs whose data are missing; else they only say so (`Run.missing`) and cannot be done.

    Raises:
        UserError: an unknown name, a setting nobody knows or of a wrong type, missing data.
    """
    overrides = overrides or {}
    suite, broken = _without_broken(suite)
    methods = {entry.method: METHODS.resolve(entry.method) for entry in suite.methods}
    problems = {entry.problem: PROBLEMS.resolve(entry.problem)() for entry in suite.problems}
    tasks = {entry.task: entry for entry in suite.tasks}
    for task_entry in suite.tasks:
        _plan_task(task_entry, suite)  # refuses bad options of a task that no problem is asked
    labels = [entry.row for entry in suite.methods]
    for label in labels:
        check_name(label, f"suite {suite.name}: label")
        if labels.count(label) > 1:
            raise UserError(f"suite {suite.name}: two methods are called {label!r}: give one of them another label")

    everything = set().union(*(_known(m, p) for m, p in itertools.product(methods.values(), problems.values())))
    idle = set(suite.settings) - everything
    idle &= _known_anywhere() if idle else set()  # of methods or problems that --methods or --problems leaves out
    named.check_known({k: v for k, v in suite.settings.items() if k not in idle}, everything, f"suite {suite.name}")
    named.check_known(overrides, everything, "--set")
    for entry in suite.methods:
        known = set().union(*(_known(methods[entry.method], p) for p in problems.values()))
        named.check_known(entry.settings, known, f"suite {suite.name}, method {entry.method}")
    for problem_entry in suite.problems:
        for task_entry in problem_entry.tasks or ():
            if task_entry.task in broken:
                continue
            _plan_task(task_entry, suite)  # refuses an unknown name; one that --tasks leaves out is just not asked
        known = set().union(*(_known(m, problems[problem_entry.problem]) for m in methods.values()))
        named.check_known(problem_entry.settings, known, f"suite {suite.name}, problem {problem_entry.problem}")

    runs = []
    for problem_entry in suite.problems:
        problem = problems[problem_entry.problem]
        asked = tuple(_plan_task(entry, suite) for entry in _asked(tasks, problem_entry))
        fingerprints: dict[Options, tuple[str, str | None]] = {}
        for seed, entry in itertools.product(suite.seeds, suite.methods):
            chain = (problem.settings, suite.settings, problem_entry.settings, entry.settings, overrides)
            runs.append(
                _plan_run(suite, problem_entry.problem, problem, entry, methods[entry.method], seed, asked, chain, fingerprints)
            )
            if complete and (missing := runs[-1].missing) is not None:
                raise UserError(missing)
    return runs


def _without_broken(suite: Suite) -> tuple[Suite, set[str]]:
    """A suite without what cannot be imported, which is named; and the names of such tasks.

    Raises:
        UserError: nothing of a kind is left, or a name is unknown.
    """
    broken: set[str] = set()

    def usable(entries: list[Any], key: str, registry: Registry) -> list[Any]:
        kept, last = [], None
        for entry in entries:
            try:
                registry.resolve(getattr(entry, key))
                kept.append(entry)
            except BrokenEntry as error:
                last = error
                warnings.warn(f"{error}: it is left out", stacklevel=2)
                broken.add(getattr(entry, key))
        if last is not None and not kept:
            raise last
        return kept

    changed = {
        "methods": usable(suite.methods, "method", METHODS),
        "problems": usable(suite.problems, "problem", PROBLEMS),
        "tasks": usable(suite.tasks, "task", TASKS),
    }
    return suite.model_copy(update=changed), broken


def _asked(tasks: Mapping[str, TaskEntry], problem: ProblemEntry) -> list[TaskEntry]:
    """The suite's tasks that are asked of a problem, with the options it adds."""
    if problem.tasks is None:
        return list(tasks.values())
    own = {entry.task: entry.options for entry in problem.tasks}
    return [TaskEntry(task=name, options={**e.options, **own[name]}) for name, e in tasks.items() if name in own]


def _known(method: Method, problem: Problem[Any]) -> set[str]:
    """Every setting that a method on a problem takes."""
    parts = (named.HARNESS, named.RECIPE, method.particle_options(), method.inference_options(), problem.options.model_fields)
    return {name for part in parts for name in part}


def _known_anywhere() -> set[str]:
    """Every setting that some registered method takes on some problem."""
    return set().union(*(_known(method, problem) for method, problem in itertools.product(_usable(METHODS), _usable(PROBLEMS))))


def _usable(registry: Registry) -> list[Any]:
    """What can be imported of everything registered."""
    found = []
    for name in registry.names():
        with contextlib.suppress(BrokenEntry):
            found.append(registry.resolve(name))
    return found


def _plan_task(entry: TaskEntry, suite: Suite) -> TaskPlan:
    task = TASKS.resolve(entry.task)
    named.check_known(entry.options, task.options.model_fields, f"suite {suite.name}, task {entry.task}")
    options = validated(task.options, entry.options, f"suite {suite.name}, task {entry.task}").model_dump(mode="json")
    return TaskPlan(entry.task, options, config_hash({"task": entry.task, "options": options, "revision": task.revision}))


def _plan_run(
    suite: Suite,
    problem_name: str,
    problem: Problem[Any],
    entry: MethodEntry,
    method: Method,
    seed: int,
    tasks: tuple[TaskPlan, ...],
    chain: Sequence[Mapping[str, Any]],
    fingerprints: dict[Options, tuple[str, str | None]],
) -> Run:
    where = f"suite {suite.name}, {problem_name}, {entry.method}"
    merged: dict[str, Any] = {
        "backbone": problem.backbone,
        "particles": 5,
        "head": "trained",
        "chunk_size": None,
        **method.defaults,
    }
    for source in chain:
        merged |= source
    merged |= method.fixed
    if merged["backbone"] is None:
        raise UserError(f"{where}: name a backbone: --set backbone=SCHEME:MODEL")
    harness = named.take(merged, named.HARNESS, where)
    if harness["particles"] < 1:
        raise UserError(f"{where}: particles is {harness['particles']}: at least 1 is needed")
    if harness["chunk_size"] is not None and harness["chunk_size"] < 1:
        raise UserError(f"{where}: chunk_size is {harness['chunk_size']}: at least 1 is needed")

    options = validated(problem.options, {k: v for k, v in merged.items() if k in problem.options.model_fields}, where)
    if options not in fingerprints:
        lacking = problem.missing(options)
        fingerprints[options] = ("" if lacking else problem.fingerprint(options), lacking)
    fingerprint, missing = fingerprints[options]

    def taken(known: Mapping[str, Any]) -> dict[str, Any]:
        """Settings with their defaults; what has none (targets) and is not set is left to the backbone."""
        given = named.take(merged, {name: option.annotation for name, option in known.items()}, where)
        defaults = {name: option.default for name, option in known.items() if option.default is not inspect.Parameter.empty}
        return {**defaults, **given}

    inference_options = taken(method.inference_options())
    method.rule(**inference_options)  # refuses a bad combination now, not after the first training
    particle_options = taken(method.particle_options())
    if "targets" in method.particle_options():
        layers = architecture(harness["backbone"])
        particle_options["targets"] = list(particle_options.get("targets", layers.targets))
        if not particle_options["targets"] and harness["head"] != "trained":
            raise UserError(f"{where}: targets is empty and the head is {harness['head']}: nothing would train")
        try:
            plan_adapters(layers.model, particle_options["targets"], particle_options.get("rank", 1))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    scheme, reference = parse(harness["backbone"])
    return Run(
        problem=problem_name,
        method=entry.method,
        label=entry.row,
        seed=seed,
        backbone=harness["backbone"],
        weights=scheme.weights(reference),
        particles=harness["particles"],
        head=harness["head"],
        recipe=named.make_recipe(merged, method.default_learning_rate, where),
        particle_options=particle_options,
        inference_options=inference_options,
        data_options=options,
        fingerprint=fingerprint,
        chunk_size=harness["chunk_size"],
        tasks=tasks,
        revision=method.revision,
        missing=missing,
    )
