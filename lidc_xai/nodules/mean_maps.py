"""The mean of several models' maps of a nodule, and which of its patches another training would draw alike.

Models differ in the size of their scores. Before patches are tested each model's scores are divided by its median over
the cohort of Σ|S| for that output; maps that are nowhere negative are centred on their own mean first. What the noise
of a patch is worth comes from the maps of other patients (``evaluation.repeatability``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.repeatability import (
    LogVariances,
    VariancePrior,
    group_agreement,
    on_grid,
    spearman_brown,
    stable_share,
    stable_tokens,
    variance_prior,
)
from lidc_xai.nodules.map_record import NoduleMaps, Repeatability
from lidc_xai.nodules.record import NOISE, by_method_and_output

if TYPE_CHECKING:
    from lidc_xai.models.nodule_model import NoduleModel

FEWEST = 5
"""Nodules of other patients below which nothing is said of the noise of a patch."""
LEAST_MODELS = 3

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """One model's maps of a nodule; ``model``: what names it (its weights' digest)."""

    model: str
    maps: NoduleMaps


@dataclass(frozen=True)
class Noise:
    """What a cohort says of one model's maps of one output: its median Σ|S| (``strength``), of all models together
    whether maps are ``centred``, and the prior of a patch's variance (s₀², d₀; ``degrees`` None: infinite).
    """

    strength: float
    centred: bool
    variance: float
    degrees: float | None

    @property
    def prior(self) -> VariancePrior:
        return VariancePrior(self.variance, float("inf") if self.degrees is None else self.degrees)


def shared_outputs(models: Sequence[NoduleModel]) -> tuple[str, ...]:
    """Outputs that all models have, in the first one's order; ``UsageError`` where there is none."""
    shared = [name for name in models[0].output_names if all(name in model.output_names for model in models)]
    if not shared:
        each = "; ".join(", ".join(names) for names in dict.fromkeys(model.output_names for model in models))
        raise UsageError(f"the models share no output ({each}); give models of the same task")
    return tuple(shared)


def shared_views(models: Sequence[NoduleModel], views: Sequence[str] | None = None) -> tuple[str, ...]:
    """Planes that all models read, or those that are asked for; ``UsageError`` where there is none."""
    if views:
        return tuple(views)
    shared = [view for view in models[0].preprocess.views if all(view in model.preprocess.views for model in models)]
    if not shared:
        each = "; ".join(", ".join(names) for names in dict.fromkeys(model.preprocess.views for model in models))
        raise UsageError(f"the models read no plane together ({each}); a mean map needs the same planes")
    return tuple(shared)


def joined(maps: Sequence[NoduleMaps]) -> list[NoduleMaps]:
    """Maps of one nodule on the outputs, planes and grid that all of them share: the coarsest grid, sums kept."""
    outputs = [name for name in maps[0].output_names if all(name in item.output_names for item in maps)]
    planes = [plane for plane in _planes(maps[0]) if all(plane in _planes(item) for item in maps)]
    if not outputs or not planes:
        raise UsageError(f"{maps[0].nodule_id}: the models' maps share no {'plane' if outputs else 'output'}")
    grid = (min(item.relevance.shape[-2] for item in maps), min(item.relevance.shape[-1] for item in maps))
    return [_restricted(item, outputs, planes, grid) for item in maps]


def _planes(maps: NoduleMaps) -> list[tuple[str, int]]:
    return list(zip(maps.views, maps.indices, strict=True))


def _restricted(
    maps: NoduleMaps, outputs: Sequence[str], planes: Sequence[tuple[str, int]], grid: tuple[int, int]
) -> NoduleMaps:
    columns = [maps.output_names.index(name) for name in outputs]
    rows = [_planes(maps).index(plane) for plane in planes]
    height, width = maps.relevance.shape[-2:]
    return replace(
        maps,
        views=tuple(view for view, _ in planes),
        indices=tuple(index for _, index in planes),
        output_names=tuple(outputs),
        relevance=on_grid(maps.relevance[np.ix_(rows, columns)], grid),
        values=maps.values[np.ix_(rows, columns)],
        token_mm=(maps.token_mm[0] * height / grid[0], maps.token_mm[1] * width / grid[1]),
    )


@dataclass
class Cohort:
    """Sums over a cohort's maps by one method, gathered in two rounds: strengths, then variances over models.

    ``strengths``: (output, model) -> Σ|S| of every map, plain and centred; ``signed``: outputs with a negative score;
    ``variances``: (output, number of models) -> patient -> moments of log s²; ``nodules``: likewise, how many.
    """

    strengths: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    signed: set[str] = field(default_factory=set)
    variances: dict[tuple[str, int], dict[str, LogVariances]] = field(default_factory=lambda: defaultdict(dict))
    nodules: dict[tuple[str, int], dict[str, int]] = field(default_factory=lambda: defaultdict(dict))

    def add_strengths(self, members: Sequence[Member]) -> None:
        """First round: one nodule's maps by its models, joined."""
        for member in members:
            for column, output in enumerate(member.maps.output_names):
                scores = np.asarray(member.maps.relevance[:, column], dtype=np.float64)
                if (scores < 0).any():
                    self.signed.add(output)
                sums = (float(np.abs(scores).sum()), float(np.abs(scores - scores.mean()).sum()))
                self.strengths[output, member.model].append(sums)

    def add_variances(self, patient: str, members: Sequence[Member]) -> None:
        """Second round."""
        count = len(members)
        if count < LEAST_MODELS:
            return
        for column, output in enumerate(members[0].maps.output_names):
            moments = LogVariances.of(self.scaled(members, column))
            kept, nodules = self.variances[output, count], self.nodules[output, count]
            kept[patient] = kept.get(patient, LogVariances()) + moments
            nodules[patient] = nodules.get(patient, 0) + 1

    def scaled(self, members: Sequence[Member], column: int) -> Floats:
        """(R, tokens) of one output, each model's on its own scale."""
        output = members[0].maps.output_names[column]
        return np.stack(
            [
                scaled_scores(member.maps, column, self.strength(output, member.model), output not in self.signed)
                for member in members
            ]
        )

    def strength(self, output: str, model: str) -> float:
        """A model's median Σ|S| (of centred maps, where they are centred); 1 where its maps are all zero."""
        return float(np.median([sums[output not in self.signed] for sums in self.strengths[output, model]])) or 1.0

    def prior(self, output: str, models: int, without: str | None = None) -> VariancePrior | None:
        """From all patients but one; None below ``FEWEST`` nodules."""
        kept, nodules = self.variances[output, models], self.nodules[output, models]
        if sum(nodules.values()) - nodules.get(without or "", 0) < FEWEST:
            return None
        total = sum(kept.values(), LogVariances())
        return variance_prior(total - kept[without] if without in kept else total)

    def noise(self) -> dict[str, dict[str, Noise]]:
        """Model -> output -> what is worth keeping for nodules without a cohort."""
        kept: dict[str, dict[str, Noise]] = defaultdict(dict)
        for output, model in self.strengths:
            counts = [count for name, count in self.variances if name == output]
            prior = self.prior(output, max(counts)) if counts else None
            if prior is not None:
                degrees = None if np.isinf(prior.degrees) else prior.degrees
                centred = output not in self.signed
                kept[model][output] = Noise(self.strength(output, model), centred, prior.variance, degrees)
        return dict(kept)


def scaled_scores(maps: NoduleMaps, column: int, strength: float, centred: bool) -> Floats:
    """(tokens,) scores of one output over all planes, in units of ``strength``."""
    scores = np.asarray(maps.relevance[:, column], dtype=np.float64).ravel()
    return (scores - scores.mean() if centred else scores) / strength


def gather(nodules: Iterable[Sequence[Member]], patients: Sequence[str]) -> Cohort:
    """Both rounds over a cohort: ``nodules`` is gone through twice."""
    cohort, each = Cohort(), list(nodules) if isinstance(nodules, Iterator) else nodules
    for members in each:
        cohort.add_strengths(_joined(members))
    for members, patient in zip(each, patients, strict=True):
        cohort.add_variances(patient, _joined(members))
    return cohort


def _joined(members: Sequence[Member]) -> list[Member]:
    loaded = list(members)  # reads files, where they lie there
    maps = joined([member.maps for member in loaded])
    return [Member(member.model, item) for member, item in zip(loaded, maps, strict=True)]


def mean_maps(
    nodules: Sequence[Sequence[Member]],
    patients: Sequence[str],
    recorded: Mapping[str, Mapping[str, Noise]] | None = None,
    cohort: Cohort | None = None,
) -> Iterator[NoduleMaps]:
    """Each nodule's mean map over its models, with its repeatability; a single model's map stays as it is.

    ``nodules``: each nodule's maps by its models, all by one method; ``patients``: of each. ``recorded``: model ->
    output -> ``Noise`` of an earlier cohort, used where this one has too few other patients. ``cohort``: of these
    nodules, where it was gathered before.
    """
    gathered = cohort or gather(nodules, patients)
    for members, patient in zip(nodules, patients, strict=True):
        yield members[0].maps if len(members) == 1 else _mean(_joined(members), patient, gathered, recorded or {})


def _mean(
    members: Sequence[Member], patient: str, cohort: Cohort, recorded: Mapping[str, Mapping[str, Noise]]
) -> NoduleMaps:
    first, count = members[0].maps, len(members)
    scores = np.stack([np.asarray(member.maps.relevance, dtype=np.float64) for member in members])
    stable = np.zeros(first.relevance.shape, dtype=bool)
    agreement: dict[str, float | None] = {}
    expected: dict[str, float | None] = {}
    shares: dict[str, float | None] = {}
    note = "" if count >= LEAST_MODELS else f"stable patches need three models or more, here are {count}"
    for column, output in enumerate(first.output_names):
        rho = group_agreement(scores[:, :, column].reshape(count, -1))
        agreement[output] = _known(rho)
        expected[output] = _known(spearman_brown(max(rho, 0.0), count) if np.isfinite(rho) else rho)
        shares[output] = None
        if note:
            continue
        tested = _tested(members, column, patient, cohort, recorded)
        if tested is None:
            note = f"stable patches need maps of {FEWEST} nodules of other patients, or a model that records them"
            continue
        scaled, prior = tested
        chosen = stable_tokens(scaled, prior)
        stable[:, column] = chosen.reshape(stable[:, column].shape)
        shares[output] = _known(stable_share(scaled.mean(0), chosen))
    repeatability = Repeatability(
        models=tuple(member.model for member in members),
        standard_error=(scores.std(axis=0, ddof=1) / np.sqrt(count)).astype(np.float32),
        stable=None if note else stable,
        agreement=agreement,
        expected=expected,
        stable_share=dict.fromkeys(shares) if note else shares,
        note=note,
    )
    return replace(
        first,
        relevance=scores.mean(0).astype(np.float32),
        values=np.stack([member.maps.values for member in members]).mean(0),
        repeatability=repeatability,
    )


def _tested(
    members: Sequence[Member],
    column: int,
    patient: str,
    cohort: Cohort,
    recorded: Mapping[str, Mapping[str, Noise]],
) -> tuple[Floats, VariancePrior] | None:
    """Scores (R, tokens) on one scale and the prior, from the cohort's other patients or from an earlier cohort."""
    output = members[0].maps.output_names[column]
    prior = cohort.prior(output, len(members), patient)
    if prior is not None:
        return cohort.scaled(members, column), prior
    kept = [recorded.get(member.model, {}).get(output) for member in members]
    noise = [item for item in kept if item is not None]
    if len(noise) < len(kept):
        return None
    scaled = [
        scaled_scores(member.maps, column, item.strength, item.centred)
        for member, item in zip(members, noise, strict=True)
    ]
    return np.stack(scaled), noise[0].prior


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def recorded_noise(training_info: Mapping[str, Any]) -> dict[str, dict[str, Noise]]:
    """Method -> output -> ``Noise`` that a model's record holds. ``ModelError`` for a damaged record."""
    return by_method_and_output(training_info, NOISE, Noise)
