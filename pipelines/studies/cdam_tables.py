"""The CDAM study's figures: the benchmark on a study's images, and what the paper states of them as tests.

On images with two known classes every image is measured in both roles: the first class's map against the second's on
the first's logit, and the other way round; the two are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lidc_xai.evaluation.benchmark.options import DISC, TARGET, BenchmarkOptions
from lidc_xai.evaluation.benchmark.runner import read_parts, run_benchmark
from lidc_xai.evaluation.benchmark.tables import figures
from lidc_xai.evaluation.cases import Case, LazyCase
from lidc_xai.evaluation.published import CDAM_PAPER, published
from lidc_xai.imagenet.photographs import read_photo
from studies.study import Study
from studies.study_arms import Arm, StudyImage
from studies.study_sets import X_MULTI, X_VAL
from studies.study_table import Row

CDAM = ("cdam", "smooth_cdam", "integrated_cdam")
OTHERS = (
    "attention", "relevance_propagation", "partial_lrp", "gradcam", "input_x_gradient", "integrated_gradients",
    "smoothgrad",
)  # fmt: skip
"""The importance estimators that the paper compares with, as far as its pages at hand name them."""

ON_TOKENS = ("attention", "relevance_propagation", "partial_lrp", "gradcam")
"""Those whose maps are no finer than CDAM's; the others have a value for every pixel."""

TABLES: Mapping[str, str] = {
    "fidelity/area": "Table 1",
    "box/area": "Table 1",
    "discrimination/fidelity": "Table 2",
    "discrimination/box": "Table 2",
    "compactness/value": "Table 3",
    "fidelity/area_mif": "Table S1",
    "fidelity/area_lif": "Table S1",
    "fidelity/at_stake": "f(x) − f(all replaced)",
    "localisation/positive_mass": "known answer",
    "localisation/auprc": "known answer",
}
"""Which table of the paper a figure stands in; what S1 holds is not at hand: here the two areas behind Table 1."""

STATED: Mapping[str, str] = {
    "fidelity/area": "correct (fidelity)",
    "box/area": "correct (box sensitivity)",
    "discrimination/fidelity": "class-discriminative (fidelity)",
    "discrimination/box": "class-discriminative (box sensitivity)",
    "compactness/value": "compact",
}
"""What the paper states of CDAM and its kin: better than every other estimator on each of these."""


def cases(arm: Arm) -> Iterator[LazyCase]:
    """The arm's images for the benchmark; one with two classes is shown twice, in both roles."""
    for image in arm.images:
        yield LazyCase(image.name, partial(_case, arm, image))


def _case(arm: Arm, image: StudyImage) -> Case:
    tensor = read_photo(image.path, arm.classifier.spec).tensor
    if len(image.classes) < 2:
        label = image.label
        return Case(tensor, None if label is None else torch.tensor([[label]]), case_id=image.name)
    a, b = image.classes[:2]
    masks = None if arm.made is None else torch.from_numpy(arm.masks(image)[:2])
    return Case(
        tensor.expand(2, -1, -1, -1), torch.tensor([[a, b], [b, a]]), masks, image.name, planes=("first", "second")
    )


def benchmark_arm(study: Study[Any], arm: Arm, metrics: Sequence[str], options: BenchmarkOptions) -> pd.DataFrame:
    """One value per image, method and metric (columns image, method, metric, value); measured images are kept.

    The figures are those of ``metrics`` alone: class discrimination measures fidelity and boxes on the way.
    """
    chosen = BenchmarkOptions.model_validate({**options.model_dump(), "metrics": tuple(metrics)})
    folder = study.out / "steps" / f"{arm.data}-{arm.model}-{arm.fingerprint}".replace(" ", "_")
    place = folder / f"benchmark-{chosen.fingerprint(arm.classifier.model)}"
    benchmark = run_benchmark(arm.classifier.model, cases(arm), place, chosen, total=len(arm.images))
    study.run.skipped += benchmark.skipped
    return _of_images(place, {image.name for image in arm.images}, metrics)


def _of_images(place: Path, names: set[str], metrics: Sequence[str]) -> pd.DataFrame:
    """The figures of the images asked for (an earlier run may have measured more)."""
    table = figures(read_parts(place))
    family = table["metric"].str.partition("/")[0]
    rows = table[table["case"].isin(names) & family.isin(list(metrics)) & table["output"].isin([TARGET, ""])]
    rows = rows[rows["metric"].isin(list(TABLES))]
    return rows.rename(columns={"case": "image"})[["image", "method", "metric", "value", "note"]]


def rows_of(study: Study[Any], arm: Arm, table: pd.DataFrame) -> None:
    """A row per method and metric, with the table of the paper that it belongs to."""
    for metric, of_metric in table.groupby("metric", sort=False):
        study.means(arm, of_metric, note=TABLES[str(metric)])


def claims_of(study: Study[Any], arm: Arm, table: pd.DataFrame) -> None:
    """Each CDAM against the best of the other estimators, on the same images, for every metric of ``STATED``; and
    against the best of those whose maps have the tokens' resolution, where a finer map is the best."""
    for metric, words in STATED.items():
        compared = table[(table["metric"] == metric) & table["method"].isin([*CDAM, *OTHERS])]
        means = compared.groupby("method", sort=False)["value"].mean().dropna()
        best = _best(means, OTHERS)
        for name in (name for name in CDAM if name in means.index and best is not None):
            claim = f"{name} is more {words} than every other estimator"
            study.claim(
                arm, claim, compared, metric, name, str(best), note=f"{TABLES[metric]}; against the best, {best}"
            )
            near = _best(means, ON_TOKENS)
            if near not in (None, best):
                claim = f"{name} is more {words} than every other estimator on tokens"
                study.claim(arm, claim, compared, metric, name, str(near), note=f"{TABLES[metric]}; against {near}")


def _best(means: pd.Series[float], names: Sequence[str]) -> str | None:
    candidates = means[means.index.isin(list(names))]
    return None if candidates.empty else str(candidates.idxmax())


def known_answer_of(study: Study[Any], arm: Arm, table: pd.DataFrame) -> None:
    """On made pairs: does a class's map lie on that class's object rather than anywhere else?"""
    metric = "localisation/positive_mass"
    of_metric = table[table["metric"] == metric]
    for name in (name for name in CDAM if (of_metric["method"] == name).any()):
        for other in ("attention", DISC):
            if (of_metric["method"] == other).any():
                claim = f"{name} puts more positive relevance on the class's object than {other}"
                study.claim(arm, claim, of_metric, metric, name, other, note="known answer")


def not_run(rows: Sequence[Row], models: Sequence[str]) -> list[Row]:
    """Rows without a figure of ours for published figures that nothing stands beside yet."""
    known = published()
    printed = known[known["source"] == CDAM_PAPER]
    there = {(row.method, row.metric) for row in rows if row.paper}
    missing = []
    for line in printed.itertuples():
        if (line.method, line.metric) not in there:
            data = X_MULTI if line.table == "Table 2" else X_VAL
            note = f"{line.table}: not run, see the list below; published: {line.note}"
            for model in models:
                missing.append(Row(data, model, str(line.method), str(line.metric), paper=True, note=note))
    return missing
