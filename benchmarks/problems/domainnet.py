"""DomainNet: 345 classes in six domains, learned on some of them; the official lists.

https://ai.bu.edu/M3SDA/ (the cleaned version). real_train.txt and real_test.txt hold lines
"real/aircraft_carrier/real_001_000001.jpg 0".
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from bella.errors import UserError, suggest
from benchmarks import prompts
from benchmarks.backbones import file_checksum
from benchmarks.datasets import DOMAIN, DataSet, Files, HeldOutOptions, chosen, file_split, split_off
from benchmarks.downloads import Archive
from benchmarks.images import fingerprint
from benchmarks.problem import Data

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")

SIZES = {
    "clipart": "1.2 GB",
    "infograph": "4.0 GB",
    "painting": "3.4 GB",
    "quickdraw": "439 MB",
    "real": "5.6 GB",
    "sketch": "2.5 GB",
}

SITE = "http://csr.bu.edu/ftp/visda/2019/multi-source/"


def _archives() -> tuple[Archive, ...]:
    cleaned = ("clipart", "painting")
    images = [Archive(f"{SITE}{'groundtruth/' if d in cleaned else ''}{d}.zip", f"{d}.zip", SIZES[d]) for d in DOMAINS]
    names = [f"{domain}_{split}.txt" for domain in DOMAINS for split in ("train", "test")]
    return (*images, *(Archive(f"{SITE}domainnet/txt/{name}", name, "") for name in names))


class DomainNetOptions(HeldOutOptions):
    """domains: those that are learned; the rest is seen in tests only. test_limit: test images a domain."""

    domains: tuple[str, ...] = Field(default=("real",), min_length=1)
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)


class DomainNet(DataSet[DomainNetOptions]):
    """The test split is the learned domains'; every domain whose test list is at hand is a further set domain-NAME."""

    options = DomainNetOptions
    name = "domainnet"
    archives = _archives()

    def missing(self, options: DomainNetOptions) -> str | None:
        """Lists and images of the domains that are learned."""
        for domain in options.domains:
            if domain not in DOMAINS:
                return f"domainnet: no domain {domain!r}: {suggest(domain, DOMAINS)}"
            for name in (f"{domain}_train.txt", f"{domain}_test.txt", domain):
                if not (self.root(options) / name).exists():
                    return self.lacking(name, options)
        return None

    def class_count(self, options: DomainNetOptions) -> int:
        """The published number."""
        return 345

    def fingerprint(self, options: DomainNetOptions) -> str:
        """The lists, of every domain at hand."""
        root = self.here(options)
        lists = [root / f"{d}_{split}.txt" for d in self._at_hand(options) for split in ("train", "test")]
        return fingerprint([f"{file.name} {file_checksum(file)}" for file in lists if file.is_file()])

    def load(self, options: DomainNetOptions) -> Data:
        """Read the lists, and the images where they fit in memory."""
        root = self.here(options)
        learned = list(dict.fromkeys(options.domains))
        listed = [entry for domain in learned for entry in _read_list(root / f"{domain}_train.txt")]
        names = _class_names(listed, root)
        training, validation = split_off(listed, options, root)
        tests = {domain: chosen(_read_list(root / f"{domain}_test.txt"), options.test_limit) for domain in self._at_hand(options)}
        for domain, files in tests.items():
            for file, label in files:
                if label >= len(names) or names[label] != _class_name(file):
                    raise UserError(f"{root / domain}_test.txt: {file.parent.name} is class {label} there, and not in training")
        further = {f"{DOMAIN}{domain}": file_split(files, root, options.image_size) for domain, files in tests.items()}
        one = f"{DOMAIN}{learned[0]}"
        together = [entry for domain in learned for entry in tests[domain]]
        return Data(
            training=file_split(training, root, options.image_size),
            validation=file_split(validation, root, options.image_size),
            test=further[one] if len(learned) == 1 else file_split(together, root, options.image_size),
            class_names=names,
            image_size=options.image_size,
            description=f"DomainNet, {len(names)} classes, {len(training)} training images of {', '.join(learned)}, "
            f"{options.image_size} px",
            templates=options.templates or prompts.DOMAINNET,
            further=further,
        )

    def _at_hand(self, options: DomainNetOptions) -> list[str]:
        root = self.root(options)
        return [domain for domain in DOMAINS if (root / f"{domain}_test.txt").is_file() and (root / domain).is_dir()]


def _read_list(file: Path) -> Files:
    """Image files and class indices.

    Raises:
        UserError: a line is not of the official form.
    """
    entries = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        path, _, label = line.rpartition(" ")
        if not path or not label.isdigit() or path.startswith("/") or ".." in path.split("/"):
            raise UserError(f"{file}, line {number}: {line!r} is not PATH CLASS; fetch the list anew")
        entries.append((file.parent / path, int(label)))
    return entries


def _class_name(file: Path) -> str:
    return file.parent.name.replace("_", " ")


def _class_names(files: Files, root: Path) -> list[str]:
    """Names of the classes 0 ... C - 1, from the folders of their images."""
    names = {label: _class_name(file) for file, label in files}
    if sorted(names) != list(range(len(names))) or len(names) < 2:
        raise UserError(f"{root}: the training lists have {len(names)} classes, not numbered from 0 without gaps; fetch them anew")
    return [names[label] for label in range(len(names))]
