"""The frame of a study: options, images and models, steps that are kept, a table, claims with verdicts, ``run.json``.

A study is a pydantic class with its options and one function ``work(study)``; ``main`` makes a script of the two. Every
batch of images is a file in OUT/steps: a killed run goes on with the same command, and nothing is computed twice. What
cannot run (no images, no weights) is named with the file to bring, stands in ``skipped.csv`` and makes exit code 3.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor

from lidc_xai.commands.common import need_out, pick_device
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.statistics import bootstrap_mean, paired_difference
from lidc_xai.files import atomic_path
from lidc_xai.imagenet.classifier import Classifier, find_architecture, load_classifier
from lidc_xai.progress import track
from lidc_xai.run import Run
from lidc_xai.skipped import Skipped, write_skipped
from studies.photo_arms import CNN, VIT, PhotoArms
from studies.published import published, read_published
from studies.study_arms import (
    PHOTOS,
    Arm,
    Labelled,
    StudyImage,
    check_weights,
    describe,
    find_weights,
    labelled_images,
    photo_images,
    what_to_bring,
)
from studies.study_measures import joined
from studies.study_table import Finding, Row, alike, with_published, write_study


class StudyConfig(Config):
    """Options of every study."""

    images: Path | None = Field(None, description="ImageNet's validation images, CUB-200-2011 or Food-101.")
    photographs: Path | None = Field(None, description="Folder with msrc/ and ilsvrc_val/.")
    photos: Path | None = Field(None, description="Further photographs, without labels.")
    weights: list[str] = Field([], description="MODEL=FILE, MODEL=pretrained, or a folder of weights files.")
    features: Path | None = Field(None, description="Where features of the photographs are kept (OUT/features).")
    size: int = Field(112, ge=28, multiple_of=14, description="Side of the photographs for the ViT, in pixels.")
    limit: int | None = Field(None, ge=1, description="At most so many images of each kind.")
    minutes: float | None = Field(
        None, gt=0, description="No new batch after so many minutes; the same command goes on."
    )
    share: str | None = Field(
        None, pattern=r"^[1-9]\d*/[1-9]\d*$",
        description="k/n: only every n-th batch, from the k-th (several processes, each with its own --out; then the "
        "folders steps/ put together and the command once without).",
    )  # fmt: skip
    published: Path | None = Field(None, description="CSV of published figures to stand beside ours.")
    batch: int = Field(8, ge=1, description="Images in one step.")


C = TypeVar("C", bound=StudyConfig)
PerBatch = Callable[[Sequence[StudyImage], Tensor], pd.DataFrame]
"""(images that could be read, (n,3,H,W) normalised) → a table with a column ``image``."""
V = TypeVar("V")
PerVariant = Callable[[Sequence[StudyImage], Tensor, str, V], pd.DataFrame]
"""The same of one variant: (images, batch, its label, what it is)."""
Maker = tuple[tuple[str, ...], Callable[[PhotoArms], Arm]]
"""The models that an arm on photographs needs, and how it is made."""
_NOT_OPTIONS = {
    "out", "quiet", "device", "images", "photographs", "photos", "weights", "features", "limit", "minutes", "share",
    "published",
    "batch", "examples", "shown", "x_val", "x_multi", "attention_images", "concept_images", "peaks_images",
    "peaks_size", "adcc_images", "masked_images", "epsilon_images", "probable_images", "benchmark",
    "sensitivity_images", "sensitivity_sets", "layers",
}  # fmt: skip
"""What no kept step depends on (each layer is a step of its own); the benchmark keeps its parts under a hash of its own
options."""


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
    deadline: float = field(init=False)

    def __post_init__(self) -> None:
        minutes = math.inf if self.config.minutes is None else self.config.minutes
        self.deadline = time.monotonic() + 60 * minutes  # no new batch is begun after it

    @cached_property
    def photo_arms(self) -> PhotoArms | None:
        """The photographs with the models at hand; None, with a note, where they were not given."""
        config = self.config
        if config.photographs is None:
            self.skip("real photographs", "images", "none: give --photographs FOLDER with msrc/ and ilsvrc_val/")
            return None
        kept = config.features or self.out / "features"
        arms = PhotoArms(
            config.photographs, config.weights, kept, size=config.size, seed=config.seed, device=self.device
        )
        arms.check()
        return arms

    def takes(self, number: int) -> bool:
        """Whether a batch that is not there yet is to be computed: it is this process's, and there is time."""
        if self.config.share is not None:
            k, n = map(int, self.config.share.split("/"))
            if number % n != (k - 1) % n:
                return False
        return self.in_time

    @property
    def in_time(self) -> bool:
        """Whether something new may be begun: not so after ``minutes``."""
        return time.monotonic() <= self.deadline

    def skip(self, item: str, stage: str, reason: str) -> None:
        """Note what is left out, with what to bring."""
        self.run.skipped.append(Skipped(item, stage, reason))

    def on_photographs(self, makers: Sequence[Maker]) -> Iterator[Arm]:
        """Each arm on the real photographs whose model's weights are there; how good its head is becomes a row."""
        arms = self.photo_arms
        for needed, make in makers if arms is not None else ():
            assert arms is not None
            absent = [model for model in needed if not arms.has(model)]
            if absent:
                self.run.skipped += [Skipped(model, "weights", what_to_bring(model)) for model in absent]
                continue
            arm = make(arms)
            self.rows += [row for row in arms.rows if row not in self.rows]
            yield self._note(replace(arm, images=arm.images[: self.config.limit]))

    def each_arm(self, models: Sequence[str], makers: Sequence[Maker]) -> Iterator[Arm]:
        """Images with models: the real photographs, an ImageNet folder with those of ``models`` whose weights are
        there, and the caller's own photographs with these. The rest is noted as skipped."""
        limit = self.config.limit
        yield from self.on_photographs(makers)
        labelled = self._labelled() if models else None
        shown = photo_images(self.config.photos, limit) if self.config.photos else ()
        for name in models:
            classifier = self._classifier(name)
            if classifier is None:
                continue
            if labelled is not None and labelled.fits(classifier):
                own = replace(classifier, classes=labelled.names)
                differs = "random weights" if classifier.random else ""
                yield self._note(Arm(labelled.data, own, labelled.images, "ImageNet validation", differs))
            elif labelled is not None:
                self.skip(name, "weights", labelled.misfit(classifier))
            if shown:
                yield self._note(Arm(PHOTOS, classifier, shown))

    def by_batch(
        self, arm: Arm, step: str, compute: PerBatch, options: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """``compute`` on every batch of the arm's images, each kept in a file; images that cannot be read are skipped.

        ``options``: what else the result depends on, beside the study's own options.
        """
        folder = self.out / "steps" / f"{arm.data}-{arm.model}-{arm.fingerprint}".replace(" ", "_") / step
        folder = folder / self._key(options)
        by_fold = {fold: list(images) for fold, images in groupby(sorted(arm.images, key=_fold), _fold)}
        starts = [(fold, k) for fold, images in by_fold.items() for k in range(0, len(images), self.config.batch)]
        parts, left_out = [], 0
        for number, (fold, start) in enumerate(track(starts, f"{step}: {arm.data}, {arm.model}", len(starts))):
            images = by_fold[fold][start : start + self.config.batch]
            part = folder / f"{_digest([str(image.path) for image in images])}.parquet"
            if not part.is_file():
                if not self.takes(number):
                    left_out += len(images)
                    continue
                arm.use(fold)
                computed = self._computed(arm, images, compute)
                with atomic_path(part) as temporary:
                    computed.to_parquet(temporary, index=False)
            parts.append(pd.read_parquet(part))
        if left_out:
            self.late(f"{step}: {arm.data}, {arm.model}", left_out, len(arm.images))
        if not parts:
            return pd.DataFrame(columns=["image", "method", "metric", "value"])
        found = pd.concat(parts, ignore_index=True)
        unread = found[found["unread"] != ""]
        for row in unread.drop_duplicates("image").itertuples():
            self.skip(str(row.image), "read", str(row.unread))
        left = found[found["unread"] == ""].drop(columns="unread")
        if left.empty and len(unread) == len(arm.images):
            raise DataError(f"none of {len(arm.images)} {arm.data} could be read; first: {unread['unread'].iloc[0]}")
        return left

    def by_variant(
        self, arm: Arm, step: str, variants: Mapping[str, V], compute: PerVariant[V],
        options: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:  # fmt: skip
        """``by_batch`` for every variant (its label → what it is), in a step of its own, one below the other."""

        def of(label: str, variant: V) -> PerBatch:
            return lambda images, batch: compute(images, batch, label, variant)

        steps = {f"{step}-{label}".replace(" ", "_"): of(label, variant) for label, variant in variants.items()}
        return joined([self.by_batch(arm, name, one, options) for name, one in steps.items()])

    def late(self, what: str, left_out: int, count: int) -> None:
        """Note what the time limit cut off, or other processes have."""
        whose = f"by share {self.config.share}" if self.config.share else f"in {self.config.minutes:g} minutes"
        reason = f"{left_out} of {count} images were not reached {whose}: run the command again"
        self.skip(what, "limit", reason)

    def once(self, name: str, compute: Callable[[], pd.DataFrame], options: Mapping[str, Any]) -> pd.DataFrame:
        """A table that is computed once; ``options``: everything that it depends on beside the study's options."""
        path = self._once_path(name, options)
        if not path.is_file():
            found = compute()
            with atomic_path(path) as temporary:
                found.to_parquet(temporary, index=False)
        return pd.read_parquet(path)

    def is_kept(self, name: str, options: Mapping[str, Any]) -> bool:
        """Whether ``once`` would compute nothing."""
        return self._once_path(name, options).is_file()

    def _once_path(self, name: str, options: Mapping[str, Any]) -> Path:
        return self.out / "steps" / name / f"{self._key(options)}.parquet"

    def means(self, arm: Arm, table: pd.DataFrame, note: str = "") -> None:
        """A row with an interval for every method and metric of ``table`` (columns image, method, metric, value)."""
        for (method, metric), own in table.groupby(["method", "metric"], sort=False):
            found = bootstrap_mean(own["value"], own["image"].tolist(), seed=self.config.seed)
            self.rows.append(
                Row.of(
                    arm.data, arm.model, str(method), str(metric), found, like=arm.like, differs=arm.differs, note=note
                )
            )

    def claim(
        self, arm: Arm, claim: str, table: pd.DataFrame, metric: str, more: str, less: str, note: str = ""
    ) -> None:
        """Test on the same images that ``metric`` is higher with the method ``more`` than with ``less``."""
        own = table[table["metric"] == metric]
        if not {more, less} <= set(own["method"]):
            return  # the time limit left nothing of it
        wide = own.pivot_table(index="image", columns="method", values="value", aggfunc="mean")
        wide = wide.reindex(columns=[more, less])
        difference = paired_difference(wide[more], wide[less], seed=self.config.seed)
        self.findings.append(Finding.of(claim, arm.data, arm.model, difference, note=note))

    def mean_claim(
        self, arm: Arm, claim: str, table: pd.DataFrame, metric: str, method: str, above: float = 0.0, sign: int = 1,
        note: str = "",
    ) -> None:  # fmt: skip
        """Test that ``metric`` of ``method`` is above a figure (``sign`` −1: below it)."""
        own = table[(table["metric"] == metric) & (table["method"] == method)]
        if len(own):
            found = bootstrap_mean(own["value"] - above, own["image"].tolist(), seed=self.config.seed)
            self.findings.append(Finding.of(claim, arm.data, arm.model, found, sign, note))

    def alike_claim(
        self, arm: Arm, claim: str, table: pd.DataFrame, metric: str, one: str, other: str, within: float
    ) -> None:
        """Test that ``metric`` of two methods differs by less than ``within``: the effect is what is left of it."""
        own = table[(table["metric"] == metric) & table["method"].isin([one, other])]
        wide = own.pivot_table(index="image", columns="method", values="value", aggfunc="mean")
        if {one, other} <= set(wide.columns):
            found = paired_difference(wide[one], wide[other], seed=self.config.seed)
            self.findings.append(alike(claim, arm.data, arm.model, found, within))

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
        found, skipped = labelled_images(self.config.images, self.config.seed, self.config.limit)
        self.run.skipped += skipped
        return found

    def _classifier(self, name: str) -> Classifier | None:
        weights = find_weights(name, self.config.weights)
        if weights is None:
            self.skip(name, "weights", what_to_bring(name))
            return None
        found = load_classifier(name, weights)
        found.model.to(self.device)
        return found

    def _computed(self, arm: Arm, images: Sequence[StudyImage], compute: PerBatch) -> pd.DataFrame:
        read, tensors, unread = [], [], []
        for image in images:
            try:
                tensors.append(arm.read(image).tensor)
                read.append(image)
            except DataError as error:
                unread.append({"image": image.name, "unread": str(error)})
        parts = [pd.DataFrame(unread, columns=["image", "unread"])]
        if read:
            batch = torch.cat(tensors).to(self.device)
            parts.insert(0, compute(read, batch).assign(unread=""))
        return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)

    def _key(self, options: Mapping[str, Any] | None) -> str:
        own = self.config.model_dump(mode="json", exclude=_NOT_OPTIONS)
        return _digest([own, dict(options or {})])


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
    at_hand = [VIT, CNN] if config.photographs is not None else []
    for model in at_hand:
        find_weights(model, config.weights)
    check_weights([*models, *at_hand], config.weights)
    for path in (config.images, config.photographs, config.photos):
        if path is not None and not path.exists():
            raise UsageError(f"{path}: no such folder of images")
    if config.published is not None:
        read_published(config.published)


def _fold(image: StudyImage) -> int:
    return image.fold


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:10]
