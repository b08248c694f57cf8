"""CAMELYON17-WILDS: is there tumour tissue in a patch of a lymph node? Learned in three hospitals, tested in another one.

https://wilds.stanford.edu/datasets/#camelyon17: 455,954 patches of 96 x 96; splits, metadata and evaluation are wilds' own.
"""

from __future__ import annotations

import numpy as np
import torch

from benchmarks import prompts
from benchmarks.backbones import file_checksum
from benchmarks.datasets import DOMAIN, DataSet, DataSetOptions
from benchmarks.downloads import Archive
from benchmarks.images import fingerprint, load_split, stratified_choice
from benchmarks.problem import Data
from benchmarks.wilds_adapter import CAMELYON17, WildsSplit, camelyon17

FILES = ("metadata.csv", "RELEASE_v1.0.txt")


class Camelyon17Options(DataSetOptions):
    """train_limit bounds the validation images too; test_limit: of the test split and of the learned hospitals' held-out images."""


class Camelyon17(DataSet[Camelyon17Options]):
    """Validation is wilds' out-of-distribution `val`, of a fourth hospital; test of a fifth; `domain-id_val` of those learned."""

    options = Camelyon17Options
    name = "camelyon17"
    archives = (
        Archive(
            "https://worksheets.codalab.org/rest/bundles/0xe45e15f39fb54e9d9e919556af67aabe/contents/blob/",
            "camelyon17_v1.0.tar.gz",
            "10.7 GB",
            into=CAMELYON17,
        ),
    )

    def missing(self, options: Camelyon17Options) -> str | None:
        """wilds' folder must be there, whole."""
        absent = next((file for file in FILES if not (self.root(options) / CAMELYON17 / file).is_file()), None)
        return None if absent is None else self.lacking(f"{CAMELYON17}/{absent}", options)

    def class_count(self, options: Camelyon17Options) -> int:
        """Healthy or tumour."""
        return 2

    def fingerprint(self, options: Camelyon17Options) -> str:
        """The table of all patches, which names them, their labels and splits."""
        folder = self.here(options) / CAMELYON17
        return fingerprint([f"{file} {file_checksum(folder / file)}" for file in FILES])

    def load(self, options: Camelyon17Options) -> Data:
        """The table; patches are decoded where they fit in memory, or for each batch."""
        source = camelyon17(self.here(options))

        def split(name: str, limit: int | None) -> WildsSplit:
            members = np.flatnonzero(np.asarray(source.split_array) == source.split_dict[name])
            labels = source.y_array[torch.from_numpy(members)]
            if limit is not None:
                members = members[stratified_choice(labels.tolist(), limit)]
            place = torch.from_numpy(members)
            ids = [source._input_array[i] for i in members]
            files = [self.root(options) / CAMELYON17 / path for path in ids]
            made = load_split(files, source.y_array[place].tolist(), ids, options.image_size)
            metadata = source.metadata_array[place]
            return WildsSplit(made.images, made.targets, ids, options.image_size, metadata=metadata, source=source)

        training = split("train", options.train_limit)
        validation = split("val", options.train_limit)
        test = split("test", options.test_limit)
        return Data(
            training=training,
            validation=validation,
            test=test,
            class_names=["healthy lymph node tissue", "lymph node tumor tissue"],
            image_size=options.image_size,
            description=f"CAMELYON17-WILDS, {len(training)} training and {len(test)} test patches, 96 px at "
            f"{options.image_size} px",
            templates=options.templates or prompts.CAMELYON17,
            further={
                f"{DOMAIN}id_val": split("id_val", options.test_limit),
                f"{DOMAIN}val": validation,
                f"{DOMAIN}test": test,
            },
        )
