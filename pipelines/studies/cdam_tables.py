"""The CDAM study's figures: the benchmark on a study's images, curves, and what the paper states as tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lidc_xai.evaluation.benchmark.options import TARGET, BenchmarkOptions
from lidc_xai.evaluation.benchmark.runner import part_path, read_parts, run_benchmark
from lidc_xai.evaluation.benchmark.tables import figures
from lidc_xai.evaluation.cases import Case, LazyCase
from lidc_xai.evaluation.published import CDAM_PAPER, published
from lidc_xai.evaluation.statistics import bootstrap_mean, paired_difference
from studies.study import Study
from studies.study_arms import Arm, StudyImage
from studies.study_sets import X_MULTI, X_VAL
from studies.study_table import Finding

CDAM = ("cdam", "smooth_cdam", "integrated_cdam")
OTHERS = (
    "attention", "relevance_propagation", "partial_lrp", "gradcam", "input_x_gradient", "integrated_gradients",
    "smoothgrad",
)  # fmt: skip
"""The importance estimators that the paper compares with."""
FIDELITY, BOX = "fidelity/area", "box/area"
OWN_FIDELITY, OWN_BOX, COMPACT = "discrimination/fidelity", "discrimination/box", "compactness/value"
WRONG = "fidelity/area of the other class's map"
METRICS = {
    FIDELITY: "LIF − MIF", "fidelity/area_mif": "MIF", "fidelity/area_lif": "LIF", BOX: "box sensitivity",
    OWN_FIDELITY: "class discrimination, LIF − MIF", OWN_BOX: "class discrimination, boxes", COMPACT: "compactness",
    "fidelity/at_stake": "f(x) − f(all replaced)",
}  # fmt: skip
CURVES = ("fidelity/mif", "fidelity/lif", "box/correlation")
_AT_ONCE = 4


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper: on its images ``like``, ``metric`` is higher with ``more`` than with any of ``less``.

    ``sign`` −1: lower.
    """

    text: str
    place: str
    like: str
    metric: str
    more: str
    less: tuple[str, ...]
    sign: int = 1


def _all_but(*names: str) -> tuple[str, ...]:
    return tuple(name for name in (*CDAM, *OTHERS) if name not in names)


_MULTI_CLAIMS = (
    ("Smooth CDAM outperforms all other methods on fidelity", "Table 1, Fig. S2", FIDELITY, "smooth_cdam"),
    ("Integrated CDAM performs the best on box sensitivity", "Table 1, Fig. S3", BOX, "integrated_cdam"),
)
_VAL_CLAIMS = (
    ("Integrated CDAM performs the best on box sensitivity", "Table S1, Fig. S6", BOX, "integrated_cdam"),
    (
        "Relevance propagation outperforms all other methods on the MIF/LIF perturbation",
        "Table S1, Fig. S7",
        FIDELITY,
        "relevance_propagation",
    ),
)
_APART = ((OWN_FIDELITY, "LIF − MIF", "Table 2, Fig. S4"), (OWN_BOX, "boxes", "Table 2, Fig. S5"))
_NOT_COMPACT = tuple(name for name in OTHERS if name != "input_x_gradient")
CLAIMS = (
    *(Claim(text, place, X_MULTI, metric, name, _all_but(name)) for text, place, metric, name in _MULTI_CLAIMS),
    *(Claim(text, place, X_VAL, metric, name, _all_but(name)) for text, place, metric, name in _VAL_CLAIMS),
    *(
        Claim(f"{name} outperforms other methods in class discrimination ({how})", place, X_MULTI, metric, name, OTHERS)
        for metric, how, place in _APART
        for name in CDAM
    ),
    Claim(
        "Partial LRP is insensitive to the choice of the class, integrated gradients follow CDAM",
        "Table 2, Fig. 3", X_MULTI, OWN_FIDELITY, "integrated_gradients", ("partial_lrp",),
    ),
    *(
        Claim(f"{name} is the most compact, with input × gradient", "Table 3", X_MULTI, COMPACT, name, _NOT_COMPACT)
        for name in ("cdam", "integrated_cdam")
    ),
    Claim(
        "Relevance propagation shows the lowest sparsity of all", "Table 3", X_MULTI, COMPACT, "relevance_propagation",
        _all_but("relevance_propagation"), -1,
    ),
)  # fmt: skip


def cases(arm: Arm, roles: int) -> Iterator[LazyCase]:
    """The arm's images for the benchmark; ``roles`` 2: one with two classes is shown twice, in both roles."""
    for image in arm.images:
        yield LazyCase(image.name, partial(_case, arm, image, roles))


def _case(arm: Arm, image: StudyImage, roles: int) -> Case:
    tensor = arm.read(image).tensor
    if len(image.classes) < 2:
        label = image.label
        return Case(tensor, None if label is None else torch.tensor([[label]]), case_id=image.name)
    a, b = image.classes[:2]
    if roles == 1:
        return Case(tensor, torch.tensor([[a, b]]), case_id=image.name)
    images = tensor.expand(2, -1, -1, -1)
    return Case(images, torch.tensor([[a, b], [b, a]]), case_id=image.name, planes=("first", "second"))


def benchmark_arm(
    study: Study[Any], arm: Arm, metrics: Sequence[str], options: BenchmarkOptions, roles: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(one value per image, method and metric, mean curves by method); measured images are kept.

    The figures are those of ``metrics`` alone: class discrimination measures fidelity and boxes on the way.
    """
    chosen = BenchmarkOptions.model_validate({**options.model_dump(), "metrics": tuple(metrics)})
    folder = study.out / "steps" / f"{arm.data}-{arm.model}-{arm.fingerprint}".replace(" ", "_").replace(":", "")
    parts, left_out, numbers = [], 0, count()
    for fold, images in arm.by_fold():
        place = folder / f"benchmark-{fold}-{chosen.fingerprint(arm.classifier.model)}"
        reached = 0
        for start in range(0, len(images), _AT_ONCE):
            some = replace(arm, images=images[start : start + _AT_ONCE])
            if not study.takes(next(numbers)) and not _all_measured(place, some.images):
                continue
            run = run_benchmark(arm.classifier.model, cases(some, roles), place, chosen, total=len(some.images))
            study.run.skipped += run.skipped
            reached += len(some.images)
        left_out += len(images) - reached
        if (place / "parts").is_dir() and any((place / "parts").iterdir()):
            table = read_parts(place)
            parts.append(table[table["case"].isin([image.name for image in images])])
    if left_out:
        study.late(f"perturbation: {arm.data}, {arm.model}", left_out, len(arm.images))
    if not parts:
        empty = pd.DataFrame(columns=["image", "method", "metric", "value", "note"])
        return empty, empty
    table = pd.concat(parts, ignore_index=True)
    table = table[table["output"].isin([TARGET, ""])]
    values = figures(table)
    values = values[values["metric"].isin(list(METRICS))].rename(columns={"case": "image"})
    curves = table[table["metric"].isin(CURVES)].astype({"metric": str, "method": str})
    curves = curves.groupby(["metric", "method", "x"], sort=False)["value"].mean().reset_index()
    return with_wrong(values[["image", "method", "metric", "value", "note"]]), curves


def _all_measured(place: Path, images: Sequence[StudyImage]) -> bool:
    return all(part_path(place, image.name).is_file() for image in images)


def with_wrong(table: pd.DataFrame) -> pd.DataFrame:
    """With LIF' − MIF' of the other class's map on the own score: the own map's area − class discrimination."""
    wide = table.pivot_table(index=["image", "method"], columns="metric", values="value", aggfunc="mean", observed=True)
    if FIDELITY not in wide or OWN_FIDELITY not in wide:
        return table
    wrong = (wide[FIDELITY] - wide[OWN_FIDELITY]).dropna().rename("value").reset_index()
    return pd.concat([table, wrong.assign(metric=WRONG, note="")], ignore_index=True)


def claims_of(study: Study[Any], arm: Arm, table: pd.DataFrame) -> None:
    """Each sentence of the paper that is about these images, against the best of the methods that it names."""
    table = table.astype({"metric": str, "method": str})
    for claim in CLAIMS:
        own = table[table["metric"] == claim.metric]
        means = claim.sign * own.groupby("method")["value"].mean().dropna()
        rivals = means[means.index.isin(list(claim.less))]
        if claim.like != arm.like or rivals.empty or claim.more not in means:
            continue
        best = str(rivals.idxmax())
        wide = own.pivot_table(index="image", columns="method", values="value", aggfunc="mean")
        difference = paired_difference(wide[claim.more], wide[best], seed=study.config.seed)
        note = f"{claim.place}; against the {'highest' if claim.sign > 0 else 'lowest'} of the others here, {best}"
        study.findings.append(Finding.of(claim.text, arm.data, arm.model, difference, claim.sign, note))
    wrong = table[(table["metric"] == WRONG) & (table["method"] == "cdam")]
    if len(wrong):
        text = "With the other class's map the order of CDAM is reversed: LIF′ − MIF′ is negative"
        mean = bootstrap_mean(wrong["value"], wrong["image"].tolist(), seed=study.config.seed)
        study.findings.append(Finding.of(text, arm.data, arm.model, mean, -1, "Fig. S4 and S5"))


def not_run(study: Study[Any]) -> list[str]:
    """What the paper prints and nothing here stands beside: place, method and metric."""
    there = {(row.like, row.method, row.metric) for row in study.rows if np.isfinite(row.here)}
    known = published()
    own = known[(known["source"] == CDAM_PAPER) & known["images"].isin([X_MULTI, X_VAL])]
    return [
        f"{line.table}: {line.method}, {line.metric}"
        for line in own.itertuples()
        if (line.images, line.method, line.metric) not in there
    ]
