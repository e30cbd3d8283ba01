"""The benchmark's metrics: one function each, from a batch to rows, on the batch's shared maps and passes.

Every map is judged on every output's score at once. What is on the diagonal (a map on its own output) is the metric;
what is beside it (a map on another output) is class discrimination.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from lidc_xai.evaluation.benchmark.batch import Batch, Rows
from lidc_xai.evaluation.benchmark.options import DISC
from lidc_xai.evaluation.benchmark.robustness import judged, measure_attack, measure_map_attack, measure_scan
from lidc_xai.evaluation.forward import Scored
from lidc_xai.evaluation.map_functions import MapFunction, run_map_function
from lidc_xai.evaluation.maps import broken, constant, distinct
from lidc_xai.evaluation.metrics._adcc import (
    ADCCResult,
    Explainer,
    OtherSide,
    adcc_of_maps,
    explainer_of,
    on_each_side,
    own_target,
    side_of_interest,
)
from lidc_xai.evaluation.metrics._box_sensitivity import box_areas, box_sums
from lidc_xai.evaluation.metrics._compactness import compactness
from lidc_xai.evaluation.metrics._deletion_insertion import (
    DeletionOptions,
    deletion_outputs,
    deletion_result,
    probability_scores,
)
from lidc_xai.evaluation.metrics._fidelity import (
    curve_outputs,
    curve_percent,
    fidelity_result,
    read_by,
    replaced_outputs,
)
from lidc_xai.evaluation.metrics._parameter_randomisation import cascade
from lidc_xai.evaluation.metrics._saco import fits, group_outputs, on_cells, saco_result
from lidc_xai.evaluation.metrics._sensitivity_n import (
    SensitivityNOptions,
    random_sets,
    sensitivity_n_result,
    set_outputs,
)
from lidc_xai.evaluation.metrics.similarity import map_similarity
from lidc_xai.evaluation.replacement import ReplacementName
from lidc_xai.evaluation.results import trapezoid
from lidc_xai.evaluation.statistics import Floats
from lidc_xai.explain import targets as target_module
from lidc_xai.explain.registry import find_method
from lidc_xai.explain.targets import Logit, Target

TUNED = "_tuned"
"""Fidelity read by a copy of the model that was tuned with replaced patches: fidelity_tuned, fidelity_lung_tuned."""
ONE_OUTPUT = "the model has one output: there is no other to discriminate from"


def suffix(name: ReplacementName) -> str:
    """Metrics with another replacement than the blur say so: fidelity_lung/area."""
    return "" if name == "blur" else f"_{name}"


def measure_fidelity(batch: Batch, rows: Rows, discriminate: bool) -> None:
    """MIF/LIF of every map on its own output, and (class discrimination) on the others' scores."""
    for name in batch.options.replacements:
        _curves(batch, rows, name, batch.asked, "", discriminate)
        if batch.masked is not None:
            _curves(batch, rows, name, read_by(batch.asked, batch.masked), TUNED, False)
    if batch.options.inpaint:
        _curves(batch, rows, "mean", batch.asked, "", False, inpaint=True)
        if batch.masked is not None:
            _curves(batch, rows, "mean", read_by(batch.asked, batch.masked), TUNED, False, inpaint=True)


def _curves(
    batch: Batch, rows: Rows, name: ReplacementName, asked: Scored, by: str, discriminate: bool, inpaint: bool = False
) -> None:
    """Curves of one fill, read by the model itself or (``by``) by its copy tuned with replaced patches."""
    removed = batch.removed(name)
    ends = batch.ends(name) if asked is batch.asked else replaced_outputs(asked.forward, asked.outputs, removed)
    family, options = f"fidelity{'_inpaint' if inpaint else suffix(name)}{by}", batch.options
    run_to = 100.0 if discriminate else options.up_to
    percent = curve_percent(options.points, run_to)
    for label, maps in batch.pixels.items():
        outputs = curve_outputs(
            asked.forward, asked.images, removed, maps, ends, options.points, options.seed, inpaint, run_to
        )
        scores = np.asarray(asked.read(outputs).cpu().numpy())  # (B, map, 2, P, score)
        bad, flat = broken(maps).cpu().numpy(), constant(maps).cpu().numpy()
        for t in judged(batch):
            result = fidelity_result(scores[:, t, :, :, t], percent, bad[:, t], flat[:, t], up_to=options.up_to)
            rows.add_result(family, label, batch.outputs[t], result)
            if options.curves:
                rows.add_curve(f"{family}/mif", label, batch.outputs[t], result.percent, result.mif)
                rows.add_curve(f"{family}/lif", label, batch.outputs[t], result.percent, result.lif)
        if discriminate:
            areas = trapezoid(np.moveaxis(scores, 3, -1), percent)  # (B, map, 2, score)
            lif_minus_mif = areas[:, :, 1] - areas[:, :, 0]
            lif_minus_mif[bad] = np.nan
            _discrimination(batch, rows, f"discrimination{suffix(name)}/fidelity", label, lif_minus_mif)


def measure_box(batch: Batch, rows: Rows, discriminate: bool) -> None:
    """Box sensitivity of every map on its own output, and on the others' scores."""
    sides = np.asarray(batch.boxes.sides, dtype=np.float64)
    for name in batch.options.replacements:
        scores = batch.box_scores(name)
        for label, maps in batch.pixels.items():
            different, which = distinct(maps)
            sums = box_sums(torch.nan_to_num(different, nan=0.0, posinf=0.0, neginf=0.0), batch.boxes)
            areas_by_map = box_areas(different, sums, scores, batch.plain_scores, batch.boxes, batch.size)
            correlation, areas = (
                areas_by_map.correlation[:, which],
                areas_by_map.area[:, which],
            )  # (B, map, score, sides), (B, map, score)
            for t in judged(batch):
                reasons = tuple(areas_by_map.reasons[b][which[t]][t] for b in range(len(areas)))
                rows.add(f"box{suffix(name)}/area", label, batch.outputs[t], areas[:, t, t], reasons)
                if batch.options.curves:
                    family = f"box{suffix(name)}/correlation"
                    rows.add_curve(family, label, batch.outputs[t], sides, correlation[:, t, t])
            if discriminate:
                _discrimination(batch, rows, f"discrimination{suffix(name)}/box", label, areas)


def _discrimination(batch: Batch, rows: Rows, metric: str, label: str, areas: Floats) -> None:
    """Own map minus the other maps (in turn, averaged) on each judged score; areas are (B, map, score)."""
    for t in judged(batch):
        others = [s for s in range(areas.shape[1]) if s != t]
        if not others:
            nothing = np.full(len(areas), np.nan)
            rows.add(metric, label, batch.outputs[t], nothing, [ONE_OUTPUT] * len(areas))
            continue
        values = np.mean([areas[:, t, t] - areas[:, s, t] for s in others], axis=0)
        reasons = ["" if np.isfinite(value) else "one of the two areas is undefined" for value in values]
        rows.add(metric, label, batch.outputs[t], values, reasons)


def measure_compactness(batch: Batch, rows: Rows) -> None:
    """Share of cells below 5 % of the maximum; pixel maps also as patch means, on the grid of the token methods."""
    tokens = {(maps.shape[-2], maps.shape[-1]) for maps in batch.maps.values()} - {batch.size}
    grid = next(iter(tokens)) if len(tokens) == 1 else None
    for label, maps in batch.maps.items():
        on_pixels = tuple(maps.shape[-2:]) == batch.size
        divides = grid is not None and not (batch.size[0] % grid[0] or batch.size[1] % grid[1])
        for t in judged(batch):
            result = compactness(maps[:, t], grid=grid if on_pixels and divides else None)
            rows.add("compactness/value", label, batch.outputs[t], result.value, result.reasons)
            if result.on_grid is not None:
                rows.add("compactness/on_grid", label, batch.outputs[t], result.on_grid, result.reasons)


def measure_deletion(batch: Batch, rows: Rows) -> None:
    """Deletion and insertion of every map on its own output."""
    chosen = DeletionOptions(cell=batch.options.cell, seed=batch.options.seed)
    removed = batch.removed("mean")
    spec, columns = batch.asked.targets.spec, batch.asked.targets.columns
    for label, maps in batch.pixels.items():
        outputs = deletion_outputs(batch.forward, batch.images, removed, maps, chosen).values
        bad, flat = broken(maps).cpu().numpy(), constant(maps).cpu().numpy()
        for t in judged(batch):
            scores = probability_scores(outputs[:, t], columns[:, t], spec.kinds).cpu().numpy()
            result = deletion_result(scores, bad[:, t], flat[:, t])
            rows.add_result("deletion", label, batch.outputs[t], result)
            if batch.options.curves:
                rows.add_curve("deletion/deletion", label, batch.outputs[t], result.share, result.deletion)
                rows.add_curve("deletion/insertion", label, batch.outputs[t], result.share, result.insertion)


def measure_sensitivity_n(batch: Batch, rows: Rows) -> None:
    """Sensitivity-n of every map on its own output; the sets are shared by all."""
    chosen = SensitivityNOptions(sets=batch.options.sets, seed=batch.options.seed)
    sets = random_sets(batch.size, chosen)
    removed = batch.removed(batch.options.replacements[0])
    scores = batch.asked.read(set_outputs(batch.forward, batch.images, removed, sets, chosen)).cpu().numpy()
    for label, maps in batch.pixels.items():
        for t in judged(batch):
            one = sensitivity_n_result(maps[:, t], scores[..., t], batch.plain_scores[:, t], sets, chosen)
            rows.add("sensitivity_n/mean", label, batch.outputs[t], one.mean, one.reasons)
            if batch.options.curves:
                rows.add_curve("sensitivity_n/correlation", label, batch.outputs[t], one.share, one.correlation)


def measure_saco(batch: Batch, rows: Rows) -> None:
    """SaCo of every map on its own output."""
    spec, columns, seed = batch.asked.targets.spec, batch.asked.targets.columns, batch.options.seed

    def read(outputs: Tensor, t: int) -> Tensor:
        return probability_scores(outputs, columns[:, t], spec.kinds)

    for name in batch.options.replacements:
        removed = batch.removed(name)
        for label, maps in batch.maps.items():
            cells = on_cells(batch.model, batch.images, maps)
            cells = cells if fits(cells, batch.size) else batch.pixels[label]
            outputs = group_outputs(batch.forward, batch.images, removed, cells, seed).values
            for t in judged(batch):
                costs = read(batch.asked.outputs.values, t)[:, None] - read(outputs[:, t], t)
                rows.add_result(f"saco{suffix(name)}", label, batch.outputs[t], saco_result(cells[:, t], costs, seed))


def measure_adcc(batch: Batch, rows: Rows) -> None:
    """ADCC of every method on the outputs that have a probability."""
    spec = batch.asked.targets.spec
    for t in judged(batch):
        columns = batch.asked.targets.columns[:, t]
        if any(spec.kinds[column] == "regression" for column in columns.unique().tolist()):
            continue
        asked = side_of_interest(batch.forward, batch.images, columns)
        for label, (method, options) in batch.variants.items():
            kind = getattr(target_module, find_method(method).target) if isinstance(method, str) else Logit
            wanted = own_target(columns, asked, kind)
            named = method if isinstance(method, str) else partial(_of_function, label, method, batch.model)
            explainer = explainer_of(batch.model, named, batch.options.explain_batch, options)
            rows.add_result("adcc", label, batch.outputs[t], _adcc(batch, asked, explainer, wanted))
        if DISC in batch.maps:
            disc = partial(_same, batch.maps[DISC][:, t])
            result = adcc_of_maps(asked, batch.maps[DISC][:, t], disc, batch.options.signed)
            rows.add_result("adcc", DISC, batch.outputs[t], result)


def _adcc(batch: Batch, asked: Scored, explainer: Explainer, wanted: Target) -> ADCCResult:
    def maps(images: Tensor) -> Tensor:
        return on_each_side(explainer, images, wanted, asked)

    return adcc_of_maps(asked, maps(asked.images), maps, batch.options.signed)


def _of_function(name: str, function: MapFunction, model: nn.Module, images: Tensor, target: Target) -> Tensor:
    """(b,h,w) of a function of the caller's own, which knows outputs alone: the other side's map is its negative."""
    columns = torch.as_tensor(target.output).reshape(-1, 1).expand(len(images), 1)
    relevance = run_map_function(name, function, model, images, columns)[:, 0]
    return -relevance if isinstance(target, OtherSide) else relevance


def _same(maps: Tensor, images: Tensor) -> Tensor:
    """The map of somebody who does not look at the image."""
    return maps


def measure_noise(batch: Batch, rows: Rows) -> None:
    """Similarity of every map with that of a noisy image (one draw, the same for every image)."""
    generator = torch.Generator().manual_seed(batch.options.seed)
    images = batch.images
    noise = torch.randn(images.shape[1:], generator=generator, dtype=torch.float64).to(images)
    moved = images + batch.options.noise_sigma * images.std((1, 2, 3), keepdim=True) * noise
    _similarities(batch, rows, "noise", [batch.explain_all(batch.model, moved)])


def measure_runs(batch: Batch, rows: Rows) -> None:
    """Similarity of a stochastic method's maps between seeds."""
    again = [batch.explain_all(batch.model, batch.images, seed=1 + run) for run in range(batch.options.runs - 1)]
    _similarities(batch, rows, "runs", again)


def _similarities(batch: Batch, rows: Rows, family: str, others: list[dict[str, Tensor]]) -> None:
    for label in batch.variants:
        for t in judged(batch):
            similarities = [map_similarity(batch.maps[label][:, t], other[label][:, t]) for other in others]
            for name in similarities[0].figures:
                values = np.mean([getattr(one, name) for one in similarities], axis=0)
                rows.add(f"{family}/{name}", label, batch.outputs[t], values, similarities[0].reasons)


def measure_randomisation(batch: Batch, rows: Rows) -> None:
    """Cascading parameter randomisation of every method, all on the same randomised models."""
    stages = [batch.explain_all(changed, batch.images) for _, changed in cascade(batch.model, batch.options.seed)]
    steps = np.arange(1, len(stages) + 1, dtype=np.float64)
    for label in batch.variants:
        for t in judged(batch):
            similarities = [map_similarity(batch.maps[label][:, t], maps[label][:, t]) for maps in stages]
            for name in similarities[0].figures:
                values = np.stack([getattr(one, name) for one in similarities], axis=1)
                rows.add(f"randomisation/{name}", label, batch.outputs[t], values[:, -1], similarities[-1].reasons)
                if batch.options.curves:
                    rows.add_curve(f"randomisation/{name}_by_stage", label, batch.outputs[t], steps, values)


Metric = Callable[[Batch, Rows], None]
SIMPLE: dict[str, Metric] = {
    "saco": measure_saco,
    "compactness": measure_compactness,
    "adcc": measure_adcc,
    "deletion": measure_deletion,
    "sensitivity_n": measure_sensitivity_n,
    "noise": measure_noise,
    "runs": measure_runs,
    "randomisation": measure_randomisation,
    "attack": measure_attack,
    "map_attack": measure_map_attack,
    "scan": measure_scan,
}
