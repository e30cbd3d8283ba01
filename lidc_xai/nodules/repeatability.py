"""How far a cohort's maps repeat: agreement of disjoint groups of models, by method, output and size of the groups.

Beside the models stand controls. Labels dealt out anew: models that were trained on other patients' ratings, another
deal for every model. Random heads on one model's trunk: CDAM is linear in the head, so that their signed agreement is 0
by symmetry, and the agreement of |S| says what the trunk alone buys. Random weights: the network before it learned.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.repeatability import (
    disjoint_groups,
    group_correlations,
    group_identified,
    spearman_brown,
)
from lidc_xai.models.digest import check_different, weights_digest
from lidc_xai.nodules.ensemble import Ensemble, models_for
from lidc_xai.nodules.map_record import load_maps
from lidc_xai.nodules.maps import explain_members
from lidc_xai.nodules.mean_maps import joined, shared_outputs

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.models.nodule_model import NoduleModel
    from lidc_xai.nodules._predict import Models

MODELS, SHUFFLED, HEADS, WEIGHTS = "models", "labels dealt out anew", "random heads", "random weights"
CONTROLS = (HEADS, WEIGHTS)
RESAMPLES = 1000

Floats = NDArray[np.float64]


def with_random_head(model: NoduleModel, seed: int) -> NoduleModel:
    """The same backbone (shared, not copied) under a head that learned nothing.

    >>> other = with_random_head(model, 0)
    >>> other.backbone is model.backbone, other.head is model.head
    (True, False)
    """
    import torch

    head = deepcopy(model.head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in head.modules():
            reset = cast("Callable[[], None] | None", getattr(module, "reset_parameters", None))
            if reset is not None:
                reset()
    other = copy(model)
    other._modules = {**model._modules, "head": head}
    return other


def map_repeatability(
    runs: Sequence[Models],
    store: CropStore,
    method: str | Sequence[str] = ("cdam",),
    *,
    nodule_ids: Sequence[str] | None = None,
    shuffled: Sequence[Models] = (),
    controls: Sequence[str] = CONTROLS,
    folder: Path | str | None = None,
    device: str = "cpu",
    slices: int = 1,
    turns: int | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Do trainings draw the same maps? One row per method, ``maps`` (the models or a control), output and k.

    ``runs``: two or more models, folders, or cross-validated runs (a list of fold models), each one training of the
    same recipe; a nodule is explained by each run's model that never saw its patient, and left out where a run has
    none. ``shuffled``: runs on labels that were dealt out anew. ``controls``: of "random heads" (on the first run's
    trunks) and "random weights", as many as there are runs. ``folder``: keeps every model's maps, so that the same call
    goes on. ``slices``, ``turns``, ``options``: as for ``explain_nodules``.

    Columns: method, maps, output (or "all", the mean over outputs), k, models, nodules, patients, pairs (of groups);
    agreement ρ_k with its 95 % interval (low, high) and what that one has resampled (models and patients, or patients
    alone where most draws of so few models hold no two groups of k), and what Spearman and Brown expect from k = 1;
    absolute (of |S|, with interval) and mean_abs (mean |ρ|); identified, with interval: how often a group's map is most
    like the other group's map of the same output (``evaluation.group_identified``; chance 1 / outputs).

    Raises ``UsageError`` for fewer than two runs, two copies of one model, models without a shared output;
    ``DataError`` where no nodule is left.

    >>> seeds = [build_model("vit_nodule_p8", ("malignancy",), size=32, seed=seed) for seed in range(3)]
    >>> table = map_repeatability(seeds, store, controls=["random heads"], resamples=50)
    >>> table[["maps", "output", "k", "models", "nodules"]].values.tolist()
    [['models', 'malignancy', 1, 3, 7], ['random heads', 'malignancy', 1, 3, 7]]
    """
    from lidc_xai.nodules._predict import loaded_models

    methods = [method] if isinstance(method, str) else list(method)
    unknown = [name for name in controls if name not in CONTROLS]
    if unknown:
        raise UsageError(f"control {unknown[0]!r} is not known; choose from {', '.join(CONTROLS)}")
    trained, dealt = ([loaded_models(run) for run in some] for some in (runs, shuffled))
    if len(trained) < 2:
        raise UsageError(f"repeatability needs two trainings or more, here is {len(trained)}: one map repeats itself")
    cast_of = _Cast(trained, dealt, controls, seed)
    ids = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    patients = {name: str(store.row(name)["patient_id"]) for name in ids}
    places = {name: cast_of.places(patient) for name, patient in patients.items()}
    kept = [name for name in ids if all(place is not None for some in places[name].values() for place in some)]
    if not kept:
        raise DataError(
            f"{store.path}: every nodule's patient is known to a training; give nodules that none of them saw"
        )
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(folder) if folder is not None else Path(scratch)
        folders = [root / name for name in cast_of.names]
        every = {name: [cast("int", place) for some in places[name].values() for place in some] for name in kept}
        ensemble = Ensemble(cast_of.models, device, slices, turns)
        explain_members(ensemble, store, folders, cast_of.digests, every, methods, options)
        rows = [
            {"method": name, "maps": group, **row}
            for name in methods
            for group in cast_of.groups
            for row in agreement_rows(
                _scores(folders, name, {nodule: places[nodule][group] for nodule in kept}),
                [patients[nodule] for nodule in kept], resamples, seed,
            )
        ]  # fmt: skip
    return pd.DataFrame(rows)


class _Cast:
    """All models that take part, one after the other, and which of them explain a patient for each group."""

    def __init__(
        self,
        runs: Sequence[Sequence[NoduleModel]],
        shuffled: Sequence[Sequence[NoduleModel]],
        controls: Sequence[str],
        seed: int,
    ) -> None:
        from lidc_xai.evaluation.metrics._parameter_randomisation import randomised

        self.models: list[NoduleModel] = []
        self.digests: list[str] = []
        self.groups: dict[str, list[list[int]]] = {MODELS: [self._add(run) for run in runs]}
        shared_outputs(self.models)
        if shuffled:
            self.groups[SHUFFLED] = [self._add(run) for run in shuffled]
        check_different(self.digests)
        first, count = list(zip(runs[0], self.digests, strict=False)), len(runs)
        if HEADS in controls:
            self.groups[HEADS] = [
                self._add(
                    [with_random_head(model, seed + k) for model, _ in first], f"random head {seed + k} on ", first
                )
                for k in range(count)
            ]
        if WEIGHTS in controls:
            self.groups[WEIGHTS] = [
                self._add([cast("NoduleModel", randomised(runs[0][0], drawn))], f"weights {drawn} as ", first[:1])
                for drawn in range(seed, seed + count)
            ]
        self.names = [
            f"{group.replace(' ', '-')}-{number + 1}" + (f"-{k + 1}" if len(run) > 1 else "")
            for group, members in self.groups.items() for number, run in enumerate(members) for k in range(len(run))
        ]  # fmt: skip

    def _add(
        self, models: Sequence[NoduleModel], words: str = "", of: Sequence[tuple[NoduleModel, str]] = ()
    ) -> list[int]:
        start = len(self.models)
        self.models += models
        self.digests += [f"{words}{digest}" for _, digest in of] or [weights_digest(model) for model in models]
        return list(range(start, len(self.models)))

    def places(self, patient: str) -> dict[str, list[int | None]]:
        """Group -> of each of its runs the model that never saw the patient, or None."""
        return {
            group: [run[0] if group == WEIGHTS else self._fresh(run, patient) for run in runs]
            for group, runs in self.groups.items()
        }

    def _fresh(self, run: Sequence[int], patient: str) -> int | None:
        unseen = models_for([self.models[place] for place in run], patient)
        return run[unseen[0]] if unseen else None


def _scores(
    folders: Sequence[Path], method: str, places: Mapping[str, Sequence[int | None]]
) -> Iterator[tuple[tuple[str, ...], Floats]]:
    """Per nodule the outputs and (R, outputs, tokens) of the models at its places."""
    for nodule_id, some in places.items():
        maps = joined([load_maps(folders[cast("int", place)] / "maps", nodule_id, method) for place in some])
        scores = np.stack([np.moveaxis(item.relevance, 1, 0).reshape(len(item.output_names), -1) for item in maps])
        yield maps[0].output_names, scores.astype(np.float64)


def agreement_rows(
    nodules: Iterator[tuple[tuple[str, ...], Floats]], patients: Sequence[str], resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Rows by output (and "all") and k of ``map_repeatability``, from each nodule's (R, outputs, tokens)."""
    signed: dict[int, list[Floats]] = {}
    absolute: dict[int, list[Floats]] = {}
    identified: dict[int, list[Floats]] = {}
    outputs: tuple[str, ...] = ()
    count = 0
    for names, scores in nodules:
        outputs, count = names, len(scores)
        for k in range(1, count // 2 + 1):
            signed.setdefault(k, []).append(group_correlations(scores, k, seed=seed))
            absolute.setdefault(k, []).append(group_correlations(np.abs(scores), k, seed=seed))
            identified.setdefault(k, []).append(group_identified(scores, k, seed=seed))
    rows = []
    places: list[tuple[int | slice, str]] = [*enumerate(outputs)]
    places += [(slice(None), "all")] if len(outputs) > 1 else []
    for place, output in places:
        single = float("nan")
        for k in signed:
            rho, rho_abs, same = (_of_output(np.stack(some[k]), place) for some in (signed, absolute, identified))
            pairs = disjoint_groups(count, k, seed=seed)
            mean, low, high = resampled_mean(rho, pairs, count, patients, resamples, seed)
            size, size_low, size_high = resampled_mean(rho_abs, pairs, count, patients, resamples, seed)
            share, share_low, share_high = resampled_mean(same, pairs, count, patients, resamples, seed)
            single = mean if k == 1 else single
            rows.append({
                "output": output, "k": k, "models": count, "nodules": len(rho), "patients": len(set(patients)),
                "pairs": len(pairs), "agreement": mean, "low": low, "high": high,
                "resampled": "models and patients" if models_vary(count, k) else "patients",
                "expected": spearman_brown(single, k), "absolute": size, "absolute_low": size_low,
                "absolute_high": size_high, "mean_abs": _nanmean(np.abs(rho)), "identified": share,
                "identified_low": share_low, "identified_high": share_high,
            })  # fmt: skip
    return rows


def _of_output(correlations: Floats, place: int | slice) -> Floats:
    """(nodules, outputs, pairs) -> (nodules, pairs) of one output, or their mean over outputs."""
    if isinstance(place, int):
        return correlations[:, place]
    known = np.isfinite(correlations)
    with np.errstate(invalid="ignore"):
        return np.where(known, correlations, 0).sum(1) / known.sum(1)


def resampled_mean(
    values: Floats,
    pairs: Sequence[tuple[tuple[int, ...], ...]],
    models: int,
    patients: Sequence[str],
    resamples: int,
    seed: int,
) -> tuple[float, float, float]:
    """Mean of ``values`` (nodules, pairs) and its 95 % interval over draws of models and of patients.

    A draw of models gives a pair of groups the product of its models' counts as weight: pairs of a model with itself
    never arise. Where most draws would hold no pair (``models_vary``) only patients vary.
    """
    codes = pd.factorize(np.asarray(patients, dtype=object))[0]
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    rng = np.random.default_rng(seed)
    count = int(codes.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), resamples)[:, codes].astype(np.float64)
    weights = rng.multinomial(models, np.full(models, 1 / models), resamples)
    of_pairs = np.stack([weights[:, [*first, *second]].prod(1) for first, second in pairs], axis=1).astype(np.float64)
    if not models_vary(models, len(pairs[0][0])):
        of_pairs = np.ones_like(of_pairs)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = ((drawn @ filled) * of_pairs).sum(1) / ((drawn @ known) * of_pairs).sum(1)
    means = means[np.isfinite(means)]
    low, high = np.quantile(means, [0.025, 0.975]) if len(means) else (np.nan, np.nan)
    return _nanmean(values), float(low), float(high)


def models_vary(models: int, k: int) -> bool:
    """Whether a draw of ``models`` with replacement is expected to hold two groups of k different ones.

    >>> [models_vary(10, k) for k in (1, 3, 4, 5)]
    [True, True, False, False]
    """
    return 2 * k <= models * (1 - (1 - 1 / models) ** models)


def _nanmean(values: Floats) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
