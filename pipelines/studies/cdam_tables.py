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
from lidc_xai.evaluation.statistics import bootstrap_mean, paired_difference, spearman
from studies.published import CDAM_PAPER, published
from studies.study import Study
from studies.study_arms import Arm, StudyImage
from studies.study_sets import X_MULTI, X_VAL
from studies.study_table import Finding, alike

CDAM = ("cdam", "smooth_cdam", "integrated_cdam")
OTHERS = (
    "attention", "relevance_propagation", "partial_lrp", "gradcam", "input_x_gradient", "integrated_gradients",
    "smoothgrad",
)  # fmt: skip
"""The importance estimators that the paper compares with."""
FIDELITY, BOX = "fidelity/area", "box/area"
OWN_FIDELITY, OWN_BOX, COMPACT = "discrimination/fidelity", "discrimination/box", "compactness/value"
WRONG, WRONG_BOX = "fidelity/area of the other class's map", "box/area of the other class's map"
SENSITIVITY = "sensitivity_n/mean"
METRICS = {
    FIDELITY: "LIF − MIF", "fidelity/area_mif": "MIF", "fidelity/area_lif": "LIF", BOX: "box sensitivity",
    OWN_FIDELITY: "class discrimination, LIF − MIF", OWN_BOX: "class discrimination, boxes", COMPACT: "compactness",
    "fidelity/at_stake": "f(x) − f(all replaced)", SENSITIVITY: "sensitivity-n",
}  # fmt: skip
MIF, LIF = "fidelity/area_mif", "fidelity/area_lif"
_IG = "integrated_gradients"
_UNRELATED = 0.3  # a rank correlation below it counts as none
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
        reached: set[str] = set()
        for start in range(0, len(images), _AT_ONCE):
            some = replace(arm, images=images[start : start + _AT_ONCE])
            if not study.takes(next(numbers)) and not _all_measured(place, some.images):
                continue
            run = run_benchmark(arm.classifier.model, cases(some, roles), place, chosen, total=len(some.images))
            study.run.skipped += run.skipped
            reached.update(image.name for image in some.images)
        left_out += sum(image.name not in reached and not _all_measured(place, [image]) for image in images)
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
    """With the areas of the other class's map on the own score: the own map's − class discrimination."""
    wide = table.pivot_table(index=["image", "method"], columns="metric", values="value", aggfunc="mean", observed=True)
    parts = [table]
    for metric, own, apart in ((WRONG, FIDELITY, OWN_FIDELITY), (WRONG_BOX, BOX, OWN_BOX)):
        if own in wide and apart in wide:
            wrong = (wide[own] - wide[apart]).dropna().rename("value").reset_index()
            parts.append(wrong.assign(metric=metric, note=""))
    return pd.concat(parts, ignore_index=True)


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
    if arm.like == X_MULTI:
        _multi_claims_of(study, arm, table)


def _multi_claims_of(study: Study[Any], arm: Arm, table: pd.DataFrame) -> None:
    """What the paper says of X_multi beside who is best."""
    text = "With the other class's map the order of CDAM is reversed: LIF′ − MIF′ is negative"
    study.mean_claim(arm, text, table, WRONG, "cdam", sign=-1)
    text = "With the other class's map CDAM's boxes are anti-correlated with the score"
    study.mean_claim(arm, text, table, WRONG_BOX, "cdam", sign=-1)
    wide = table.pivot_table(index="image", columns=["metric", "method"], values="value", aggfunc="mean")
    ours = {metric: wide[metric] for metric in dict.fromkeys(wide.columns.get_level_values(0))}
    apart = ours.get(OWN_FIDELITY)
    for name in ("attention", "partial_lrp", "smoothgrad", "input_x_gradient", "integrated_gradients"):
        if apart is not None and {name, "cdam"} <= set(apart.columns):
            left = paired_difference(apart["cdam"] / 10, apart[name], seed=study.config.seed)
            text = f"{name} does not follow the class: its class discrimination is less than a tenth of CDAM's"
            study.findings.append(Finding.of(text, arm.data, arm.model, left))
    text = "CDAM tells the classes apart better than relevance propagation (LIF − MIF)"
    study.claim(arm, text, table, OWN_FIDELITY, "cdam", "relevance_propagation")
    text = "Smooth CDAM is more faithful than CDAM (LIF − MIF)"
    study.claim(arm, text, table, FIDELITY, "smooth_cdam", "cdam")
    for text, metric, sign in (
        ("Integrated gradients are better than every other method with the most important pixels first", MIF, -1),
        ("Integrated gradients are worse than the best of the others with the least important pixels first", LIF, -1),
    ):
        own = ours.get(metric)
        others = [] if own is None else [name for name in (*CDAM, *OTHERS) if name in own and name != _IG]
        if own is None or _IG not in own or not others:
            continue
        means = own[others].mean()
        best = str(means.idxmin() if metric == MIF else means.idxmax())
        found = paired_difference(own[_IG], own[best], seed=study.config.seed)
        study.findings.append(Finding.of(text, arm.data, arm.model, found, sign, f"the best of the others: {best}"))
    if FIDELITY in ours and COMPACT in ours:
        names = [name for name in (*CDAM, *OTHERS) if name in ours[FIDELITY] and name in ours[COMPACT]]
        pairs = [(ours[FIDELITY].loc[image, names], ours[COMPACT].loc[image, names]) for image in wide.index]
        found = bootstrap_mean([spearman(*pair) for pair in pairs], seed=study.config.seed)
        text = "Fidelity and compactness are unrelated: their rank correlation over the methods is near 0"
        study.findings.append(alike(text, arm.data, arm.model, found, _UNRELATED, f"correlation {found}"))


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
