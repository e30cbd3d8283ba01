"""Simulated crops written straight into a store, in parallel, continued after an interruption."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from lidc_xai.annotations.nodule import Nodule
from lidc_xai.annotations.tables import nodule_row, nodule_votes
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.store.crop_store import CropStore, StoreWriter
from lidc_xai.progress import track
from lidc_xai.simulate.crops import simulate_crop
from lidc_xai.simulate.nodule.expression import independent_ratings, with_ratings


def simulate_store(
    out: Path | str,
    nodules: Sequence[Nodule],
    seed: int = 0,
    size_mm: float = 32.0,
    *,
    spacing_mm: float = 1.0,
    jobs: int = 1,
    independent: bool = False,
    ratings: Mapping[str, Mapping[str, float]] | None = None,
    without: Collection[str] = (),
    switched_off: Collection[str] = (),
) -> CropStore:
    """A store with one simulated crop per nodule, its cause masks beside it, ``simulated`` set in the manifest.

    ``independent``: ratings drawn independently of each other (``independent_ratings``); ``ratings``: nodule_id ->
    rating -> value, set by hand; else the readers' own. A nodule's crop depends on ``seed`` and the nodule alone, so
    neither order nor ``jobs`` changes it. An unfinished store made with the same settings is continued.

    >>> simulated = simulate_store(folder / "simulated", [nodule])
    >>> simulated.nodule_ids, bool(simulated.manifest["simulated"].all())
    (['LIDC-IDRI-0475-s1-n0'], True)
    """
    if independent and ratings:
        raise UsageError("independent=True draws the ratings; leave out ratings, or the other way round")
    chosen: Mapping[str, Mapping[str, float]] = independent_ratings(nodules, seed) if independent else ratings or {}
    rule = {
        "kind": "simulated", "seed": seed, "independent": independent,
        "ratings": {nodule_id: dict(values) for nodule_id, values in (ratings or {}).items()},
        "without": sorted(without), "switched_off": sorted(switched_off),
    }  # fmt: skip
    writer = StoreWriter(out, size_mm=size_mm, spacing_mm=spacing_mm, rule=rule)
    options = {"size_mm": size_mm, "spacing_mm": spacing_mm, "without": without, "switched_off": switched_off}
    todo = [nodule for nodule in nodules if not writer.done(nodule.nodule_id)]
    work = Parallel(n_jobs=jobs, return_as="generator_unordered")(
        delayed(_write_one)(writer, nodule, seed, chosen.get(nodule.nodule_id, {}), options) for nodule in todo
    )
    for nodule_id, reason in track(work, "simulating crops", total=len(todo)):
        if reason:
            writer.skip(nodule_id, "simulate", reason)
    return writer.finish()


def _write_one(
    writer: StoreWriter, nodule: Nodule, seed: int, ratings: Mapping[str, float], options: dict[str, Any]
) -> tuple[str, str]:
    """Simulate and write one nodule; returns its id and, where it cannot be cropped, the reason."""
    try:
        crop, causes = simulate_crop(nodule, seed, ratings=ratings, **options)
    except DataError as error:
        return nodule.nodule_id, str(error)
    rated = with_ratings(nodule, ratings)
    row = {**nodule_row(rated), "hu_calibrated": True, "simulated": True}
    writer.write(crop, row, nodule_votes(rated), causes)
    return nodule.nodule_id, ""
