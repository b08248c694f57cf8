"""Domain shift: a folder DOMAIN/CLASS/*.jpg. One domain is left out of training and is the test split."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from bella.errors import UserError, suggest
from benchmarks.images import ImageSplit, fingerprint, load_split, stratified_choice
from benchmarks.options import Options
from benchmarks.problem import Data, Problem
from benchmarks.problems.imagefolder import Files, limited, list_classes

PREFIX = "domain-"
"""Sets of one domain are called domain-NAME."""

HELD_OUT_SHARE = 0.2
"""Of every domain that is learned, for validation, and as much again as its own test images."""


class DomainFolderOptions(Options):
    """data: the folder; held_out: the domain left out; train_limit: training images; test_limit: test images a domain."""

    data: Path | None = None
    held_out: str | None = None
    image_size: int = Field(default=224, ge=8)
    train_limit: int | None = Field(default=None, ge=1)
    test_limit: int | None = Field(default=None, ge=1)
    description: str | None = None


class DomainFolder(Problem[DomainFolderOptions]):
    """Leave one domain out: a suite lists the problem once for each `held_out` to leave each out in turn."""

    options = DomainFolderOptions
    backbone = "packaged:efficientnet_lite0"
    settings: ClassVar[dict[str, Any]] = {"epochs": 5, "batch_size": 32}

    def missing(self, options: DomainFolderOptions) -> str | None:
        """The folder must have at least two domains, and the one to leave out must be named."""
        if options.data is None:
            return "domainfolder needs a folder of domains: --set data=FOLDER (with DOMAIN/CLASS/*.jpg)"
        root = options.data.expanduser()
        if not root.is_dir():
            return f"no such folder: {root} (setting data: a folder with DOMAIN/CLASS/*.jpg)"
        domains = _folders(root)
        if len(domains) < 2:
            return f"{root} has {len(domains)} domains: at least 2 are needed (DOMAIN/CLASS/*.jpg)"
        if options.held_out is None:
            return f"domainfolder: name the domain to leave out: --set held_out=DOMAIN, one of {', '.join(domains)}"
        if options.held_out not in domains:
            return f"held_out: no domain {options.held_out!r} in {root}: {suggest(options.held_out, domains)}"
        return None

    def fingerprint(self, options: DomainFolderOptions) -> str:
        """Names and sizes of all image files."""
        root = self._root(options)
        listed = self._domains(options)
        return fingerprint([f"{file.relative_to(root)} {file.stat().st_size}" for files in listed.values() for file, _ in files])

    def load(self, options: DomainFolderOptions) -> Data:
        """Read the images."""
        root = self._root(options)
        training: Files = []
        validation: Files = []
        tests: dict[str, Files] = {}
        for domain, files in self._domains(options).items():
            if domain == options.held_out:
                tests[domain] = files
                continue
            aside = stratified_choice([c for _, c in files], round(2 * HELD_OUT_SHARE * len(files)))
            own = stratified_choice([files[i][1] for i in aside], len(aside) // 2)
            tests[domain] = [files[aside[i]] for i in own]
            validation += [files[index] for place, index in enumerate(aside) if place not in set(own)]
            training += [entry for index, entry in enumerate(files) if index not in set(aside)]
        training = limited(training, options.train_limit)
        if not training or not validation:
            raise UserError(f"{root}: too few images to hold {HELD_OUT_SHARE:.0%} of each domain out for validation")

        def load(files: Files) -> ImageSplit:
            ids = [str(file.relative_to(root)) for file, _ in files]
            return load_split([file for file, _ in files], [c for _, c in files], ids, options.image_size)

        further = {f"{PREFIX}{domain}": load(limited(files, options.test_limit)) for domain, files in tests.items()}
        about = options.description or f"images of {root.resolve().name}"
        return Data(
            training=load(training),
            validation=load(validation),
            test=further[f"{PREFIX}{options.held_out}"],
            class_names=self._class_names(options),
            image_size=options.image_size,
            description=f"{about}, {len(training)} training images of {len(tests) - 1} domains, test on {options.held_out}, "
            f"{options.image_size} px",
            further=further,
        )

    def _root(self, options: DomainFolderOptions) -> Path:
        if (problem := self.missing(options)) is not None:
            raise UserError(problem)
        assert options.data is not None
        return options.data.expanduser()

    def _class_names(self, options: DomainFolderOptions) -> list[str]:
        root = self._root(options)
        names = sorted({name for domain in _folders(root) if domain != options.held_out for name in _folders(root / domain)})
        if len(names) < 2:
            raise UserError(f"{root}: {len(names)} classes in the domains to learn: at least 2 are needed")
        return names

    def _domains(self, options: DomainFolderOptions) -> dict[str, Files]:
        root, names = self._root(options), self._class_names(options)
        return {domain: list_classes(root / domain, names) for domain in _folders(root)}


def _folders(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))
