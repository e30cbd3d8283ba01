"""The frame of a study: options, images and models, steps that are kept, a table, claims with verdicts, ``run.json``.

A study is a pydantic class with its options and one function ``work(study)``; ``main`` makes a script of the two. Every
batch of images is a file in OUT/steps: a killed run goes on with the same command, and nothing is computed twice. What
cannot run (no images, no weights) is named with the file to bring, stands in ``skipped.csv`` and makes exit code 3.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from lidc_xai.commands.common import need_out, pick_device
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.published import published, read_published
from lidc_xai.evaluation.statistics import PairedDifference, bootstrap_mean, paired_difference
from lidc_xai.files import atomic_path
from lidc_xai.imagenet.classifier import Classifier, find_architecture, load_classifier
from lidc_xai.imagenet.photographs import read_photo
from lidc_xai.progress import say, track
from lidc_xai.run import Run
from lidc_xai.skipped import Skipped, write_skipped
from studies.made_photos import MadePhotos, make_photos
from studies.study_arms import (
    IMAGES,
    MADE_PAIRS,
    PHOTOS,
    Arm,
    Labelled,
    StudyImage,
    check_weights,
    describe,
    find_weights,
    labelled_images,
    made_images,
    photo_images,
    small_classifier,
    what_to_bring,
)
from studies.study_table import Finding, Row, with_published, write_study


class MadeOptions(BaseModel):
    """Photographs made for the study, and the small models that learn them."""

    model_config = ConfigDict(extra="forbid")

    train: int = Field(default=200, ge=1, description="Training images of a class.")
    val: int = Field(default=40, ge=1, description="Images of a class, kept apart.")
    pairs: int = Field(default=200, ge=2, description="Images of two objects.")
    epochs: int = Field(default=12, ge=1, description="Of the small models' training.")


class StudyConfig(Config):
    """Options of every study."""

    images: Path | None = Field(None, description="ImageNet's validation images, CUB-200-2011 or Food-101.")
    photos: Path | None = Field(None, description="Further photographs, without labels.")
    weights: list[str] = Field([], description="MODEL=FILE, MODEL=pretrained, or a folder of weights files.")
    made: Path | None = Field(None, description="Where made photographs and small models are kept (OUT/made).")
    made_options: MadeOptions = MadeOptions()
    limit: int | None = Field(None, ge=1, description="At most so many images of each kind.")
    published: Path | None = Field(None, description="CSV of published figures to stand beside ours.")
    batch: int = Field(8, ge=1, description="Images in one step.")


C = TypeVar("C", bound=StudyConfig)
PerBatch = Callable[[Sequence[StudyImage], Tensor], pd.DataFrame]
"""(images that could be read, (n,3,H,W) normalised) → a table with a column ``image``."""
_NOT_OPTIONS = {"out", "quiet", "device", "images", "photos", "weights", "made", "limit", "published", "batch"}


@dataclass
class Study(Generic[C]):
    """One run: its options, folder and device, and what it found."""

    config: C
    out: Path
    device: str
    run: Run
    source: str
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    arms: list[dict[str, Any]] = field(default_factory=list)

    @property
    def made_folder(self) -> Path:
        return self.config.made or self.out / "made"

    def made_photos(self) -> MadePhotos:
        """The photographs made for the study; made on first use."""
        options = self.config.made_options
        chosen = {"train": options.train, "val": options.val, "pairs": options.pairs, "seed": self.config.seed}
        return make_photos(self.made_folder / "photos", **chosen)

    def small(self, name: str, seed: int = 0) -> Classifier:
        """A small model that learned the made photographs; trained on first use."""
        folder, epochs = self.made_folder / "models", self.config.made_options.epochs
        classifier = small_classifier(name, self.made_photos(), folder, epochs=epochs, seed=seed, device=self.device)
        say(f"{name}, seed {seed}: accuracy {classifier.weights['accuracy']:.3f} on made images kept apart")
        return classifier

    def skip(self, item: str, stage: str, reason: str) -> None:
        """Note what is left out, with what to bring."""
        self.run.skipped.append(Skipped(item, stage, reason))

    def each_arm(
        self, models: Sequence[str], small: Sequence[str], data: Sequence[str] = (MADE_PAIRS, PHOTOS, IMAGES)
    ) -> Iterator[Arm]:
        """Images with models: made ones with ``small``, an ImageNet folder with those of ``models`` whose weights are
        there, photographs with these too, or with ``small`` where there are none. The rest is noted as skipped."""
        limit = self.config.limit
        for name in small:
            made = self.made_photos()
            for kind in (kind for kind in data if kind not in (PHOTOS, IMAGES)):
                yield self._note(Arm(kind, self.small(name), made_images(made, kind, limit), made=made))
        labelled = self._labelled() if IMAGES in data and models else None
        shown = photo_images(self.config.photos, limit) if PHOTOS in data and self.config.photos else ()
        loaded = 0
        for name in models:
            classifier = self._classifier(name)
            if classifier is None:
                continue
            loaded += 1
            if labelled is not None and labelled.fits(classifier):
                renamed = replace(classifier, classes=labelled.names)
                yield self._note(Arm(labelled.data, renamed, labelled.images, paper=not classifier.random))
            elif labelled is not None:
                self.skip(name, "weights", labelled.misfit(classifier))
            if shown:
                yield self._note(Arm(PHOTOS, classifier, shown))
        for name in small if shown and not loaded else ():
            yield self._note(Arm(PHOTOS, self.small(name), shown))

    def by_batch(
        self, arm: Arm, step: str, compute: PerBatch, options: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """``compute`` on every batch of the arm's images, each kept in a file; images that cannot be read are skipped.

        ``options``: what else the result depends on, beside the study's own options.
        """
        folder = self.out / "steps" / f"{arm.data}-{arm.model}-{arm.fingerprint}".replace(" ", "_") / step
        folder = folder / self._key(options)
        size = self.config.batch
        parts = []
        starts = range(0, len(arm.images), size)
        for start in track(starts, f"{step}: {arm.data}, {arm.model}", len(starts)):
            images = arm.images[start : start + size]
            part = folder / f"{_digest([str(image.path) for image in images])}.parquet"
            if not part.is_file():
                table = self._computed(arm, images, compute)
                with atomic_path(part) as temporary:
                    table.to_parquet(temporary, index=False)
            parts.append(pd.read_parquet(part))
        table = pd.concat(parts, ignore_index=True)
        unread = table[table["unread"] != ""]
        for row in unread.drop_duplicates("image").itertuples():
            self.skip(str(row.image), "read", str(row.unread))
        left = table[table["unread"] == ""].drop(columns="unread")
        if left.empty and len(unread) == len(arm.images):
            raise DataError(f"none of {len(arm.images)} {arm.data} could be read; first: {unread['unread'].iloc[0]}")
        return left

    def once(self, name: str, compute: Callable[[], pd.DataFrame], options: Mapping[str, Any]) -> pd.DataFrame:
        """A table that is computed once; ``options``: everything that it depends on beside the study's options."""
        path = self.out / "steps" / name / f"{self._key(options)}.parquet"
        if not path.is_file():
            table = compute()
            with atomic_path(path) as temporary:
                table.to_parquet(temporary, index=False)
        return pd.read_parquet(path)

    def means(self, arm: Arm, table: pd.DataFrame, note: str = "") -> None:
        """A row with an interval for every method and metric of ``table`` (columns image, method, metric, value)."""
        for (method, metric), group in table.groupby(["method", "metric"], sort=False):
            interval = bootstrap_mean(group["value"], group["image"].tolist(), seed=self.config.seed)
            self.rows.append(
                Row.of(arm.data, arm.model, str(method), str(metric), interval, paper=arm.paper, note=note)
            )  # fmt: skip

    def claim(
        self, arm: Arm, claim: str, table: pd.DataFrame, metric: str, more: str, less: str, note: str = ""
    ) -> PairedDifference:
        """Test on the same images that ``metric`` is higher with the method ``more`` than with ``less``."""
        of_metric = table[table["metric"] == metric]
        wide = of_metric.pivot_table(index="image", columns="method", values="value", aggfunc="mean")
        wide = wide.reindex(columns=[more, less])
        difference = paired_difference(wide[more], wide[less], seed=self.config.seed)
        self.findings.append(Finding.of(claim, arm.data, arm.model, difference, note=note))
        return difference

    def finish(self, title: str, about: Sequence[str], panels: Mapping[str, str]) -> None:
        """Write the table, the claims, the page and the figure; ``panels``: metrics to draw, with titles."""
        known = published() if self.config.published is None else read_published(self.config.published)
        self.rows = with_published(self.rows, known, self.source)
        not_run = [(row.nodule_id, row.reason) for row in sorted(set(self.run.skipped))]
        write_study(self.out, title, about, self.rows, self.findings, not_run, panels)
        verdicts = [{"claim": one.claim, "data": one.data, "verdict": one.verdict} for one in self.findings]
        self.run.results = {"rows": len(self.rows), "arms": self.arms, "findings": verdicts}

    def _note(self, arm: Arm) -> Arm:
        self.arms.append(describe(arm))
        return arm

    def _labelled(self) -> Labelled | None:
        if self.config.images is None:
            reason = "none: give --images FOLDER with ImageNet's validation images (class folders, or flat)"
            self.skip("the paper's images", "images", reason)
            return None
        labelled, skipped = labelled_images(self.config.images, self.config.seed, self.config.limit)
        self.run.skipped += skipped
        return labelled

    def _classifier(self, name: str) -> Classifier | None:
        weights = find_weights(name, self.config.weights)
        if weights is None:
            self.skip(name, "weights", what_to_bring(name))
            return None
        classifier = load_classifier(name, weights)
        classifier.model.to(self.device)
        return classifier

    def _computed(self, arm: Arm, images: Sequence[StudyImage], compute: PerBatch) -> pd.DataFrame:
        read, tensors, unread = [], [], []
        for image in images:
            try:
                tensors.append(read_photo(image.path, arm.classifier.spec).tensor)
                read.append(image)
            except DataError as error:
                unread.append({"image": image.name, "unread": str(error)})
        parts = [pd.DataFrame(unread, columns=["image", "unread"])]
        if read:
            batch = torch.cat(tensors).to(self.device)
            parts.insert(0, compute(read, batch).assign(unread=""))
        return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)

    def _key(self, options: Mapping[str, Any] | None) -> str:
        options_here = self.config.model_dump(mode="json", exclude=_NOT_OPTIONS)
        return _digest([options_here, dict(options or {})])


def main(
    kind: type[C],
    work: Callable[[Study[C]], None],
    *,
    name: str,
    about: str | None,
    source: str,
    models: Callable[[C], Sequence[str]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Parse, run, write, and return the exit code: 0 done, 1 failed, 2 wrong usage, 3 done with something left out.

    ``about``: the help text. ``source``: how the published figures name the paper. ``models``: the names that
    ``--weights`` may give, from the configuration.
    """

    def study(config: C, run: Run) -> None:
        _check(config, models(config))
        out = need_out(config)
        work(Study(config, out, pick_device(config.device), run, source))
        run.skipped = sorted(set(run.skipped))
        write_skipped(out, run.skipped)

    return run_script(name, kind, study, about or "", arguments)


def _check(config: StudyConfig, models: Sequence[str]) -> None:
    """What can be seen to be wrong before anything is computed."""
    for model in models:
        find_architecture(model)
        find_weights(model, config.weights)
    check_weights(models, config.weights)
    for path in (config.images, config.photos):
        if path is not None and not path.exists():
            raise UsageError(f"{path}: no such folder of images")
    if config.published is not None:
        read_published(config.published)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]
