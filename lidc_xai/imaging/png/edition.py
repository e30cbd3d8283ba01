"""``prepare_png``: the PNG edition of LIDC-IDRI in, the same store of nodule crops out.

The edition has 128 x 128 grey pictures of the slices that the readers marked, and their masks. Patient and group join
it to the annotations (:mod:`lidc_xai.imaging.png.match`), from which spacing, slice positions, outlines and ratings
come; grey levels become true HU where a calibration file has the nodule's lines (:mod:`lidc_xai.imaging.png.lines`),
else estimated HU (:mod:`lidc_xai.imaging.png.learned`); ``hu_source`` in the manifest says which. What it cannot have:
slices above and below the nodule (the crop is padded with air there) and patient coordinates (x and y count in mm from
the scan's first pixel, z is the scan's own).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from lidc_xai.annotations import load_nodules, select_cohort
from lidc_xai.annotations.cohort import cohorts_of
from lidc_xai.annotations.nodule import Nodule
from lidc_xai.annotations.tables import nodule_row, nodule_votes
from lidc_xai.errors import DataError, reason_of
from lidc_xai.files import sha256_of
from lidc_xai.imaging.crops.contours import GridBox, consensus_mask, place
from lidc_xai.imaging.crops.crop import CropOptions, consensus_centre
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.ct.volume import CTVolume, axial_volume
from lidc_xai.imaging.png.hu import Calibration
from lidc_xai.imaging.png.learned import hu_of_pictures
from lidc_xai.imaging.png.lines import HuLines, Lines
from lidc_xai.imaging.png.match import PngMatch, match_nodule
from lidc_xai.imaging.png.source import PngNodule, open_edition
from lidc_xai.imaging.prepare import PrepareResult, check_jobs
from lidc_xai.imaging.store.crop_store import StoreWriter
from lidc_xai.progress import say, track
from lidc_xai.skipped import ABSENT, Skipped


@dataclass(frozen=True)
class _Patient:
    """One unit of work: a patient's groups in the edition and nodules in the database."""

    source: Path
    patient_id: str
    groups: list[int]
    nodules: list[Nodule]
    wanted: frozenset[str] | None
    options: CropOptions
    lines: dict[int, Lines]

    def intercepts(self, group: int) -> list[float]:
        """Of the known lines of the patient's other nodules."""
        return [line.intercept for other, lines in self.lines.items() if other != group for line in lines.values()]


def prepare_png(
    source: Path | str,
    out: Path | str,
    cohort: str | None = None,
    size_mm: float = 32.0,
    spacing_mm: float = 1.0,
    jobs: int = 1,
    hu: Path | str | None = None,
) -> PrepareResult:
    """Turn the nodules of the PNG edition (a zip or a folder) into the store ``out``.

    ``cohort``: a name of :data:`~lidc_xai.annotations.COHORTS`, or ``None`` for all. ``jobs``: worker processes.
    ``hu``: a calibration file (:class:`~lidc_xai.imaging.png.lines.HuLines`) whose nodules get their true HU. Every
    nodule of the edition is written, or is a row of ``skipped.csv`` with its reason. The manifest's ``issues`` say
    where masks and annotations disagree, and where the HU are in doubt; ``hu_source`` is "calibrated" or "estimated"
    and ``hu_rmse`` the error in HU, of the fit or expected of the estimate. Raises UsageError for a path that is not
    the edition, an unknown cohort, or a store made by another rule; DataError for a wrong calibration file.

    >>> prepare_png(folder / "absent.zip", folder / "png")
    Traceback (most recent call last):
    lidc_xai.errors...
    """
    options = CropOptions(size_mm, spacing_mm)
    check_jobs(jobs)
    source = Path(source).resolve()
    if hu is not None:
        HuLines(hu, None)  # a wrong file is refused now, not after a minute of reading the edition and the nodules
    edition = open_edition(source)
    wanted = None if cohort is None else frozenset(select_cohort(cohort)["nodule_id"])
    known: dict[str, list[Nodule]] = defaultdict(list)
    for nodule in load_nodules():
        known[nodule.patient_id].append(nodule)
    lines = {} if hu is None else _lines_of(Path(hu), edition.patients, known)
    rule = {"source": "png", "cohort": cohort or "all nodules of the edition", "hu": "estimated per picture"}
    if hu is not None:
        rule["hu"] = f"lines of {Path(hu).name}, SHA-256 {sha256_of(Path(hu))}; else estimated per picture"
    writer = StoreWriter(Path(out).resolve(), size_mm=size_mm, spacing_mm=spacing_mm, rule=rule)
    units = [
        _Patient(source, patient, groups, known[patient], wanted, options, lines.get(patient, {}))
        for patient, groups in edition.patients.items()
        if wanted is None or any(nodule.nodule_id in wanted for nodule in known[patient])
    ]
    result = PrepareResult(writer.path)
    say(f"{sum(len(unit.groups) for unit in units)} nodules of {len(units)} patients in {source.name}")
    pool = Parallel(n_jobs=jobs, return_as="generator_unordered")
    work = pool(delayed(_prepare_patient)(writer, unit) for unit in units)
    for done in track(work, "importing patients", total=len(units)):
        result.add(done)
    if wanted is not None:
        left = wanted - {*result.written, *result.kept, *(row.nodule_id for row in result.skipped)}
        result.skipped += [Skipped(nodule_id, ABSENT, "not in the PNG edition") for nodule_id in left]
    result.close(writer)
    return result


def _lines_of(
    path: Path, groups: Mapping[str, list[int]], known: Mapping[str, list[Nodule]]
) -> dict[str, dict[int, Lines]]:
    """The lines of a calibration file by patient and group of the edition."""
    exist = {(patient, nodule.cluster_index) for patient, nodules in known.items() for nodule in nodules}
    here = {(patient, group) for patient, numbers in groups.items() for group in numbers}
    file = HuLines(path, exist | here)
    if not any(file.of(*key) for key in here):
        raise DataError(f"{path}: has no line of any nodule of this edition; give the calibration of these pictures")
    say(f"{sum(bool(file.of(*key)) for key in here)} nodules have calibrated HU in {path.name}")
    return {patient: {group: file.of(patient, group) for group in numbers} for patient, numbers in groups.items()}


def _prepare_patient(writer: StoreWriter, unit: _Patient) -> PrepareResult:
    """Read, match, calibrate and crop all nodules of one patient; what cannot be used becomes a skipped row."""
    done = PrepareResult(writer.path)
    edition = open_edition(unit.source)
    taken: dict[str, str] = {}
    for group in unit.groups:
        name = f"{unit.patient_id}-s1-n{group}"
        start = perf_counter()
        try:
            png = edition.read(unit.patient_id, group)
            match = match_nodule(png, unit.nodules)
            nodule_id = match.nodule.nodule_id
            if nodule_id in taken:
                raise DataError(f"{png.name}: is {nodule_id} by its masks, as {taken[nodule_id]} is already")
            taken[nodule_id] = png.name
            if unit.wanted is not None and nodule_id not in unit.wanted:
                continue
            if writer.done(nodule_id):
                done.kept.append(nodule_id)
                continue
            calibration = hu_of_pictures(png.images, unit.lines.get(group, {}), unit.intercepts(group), png.name)
            crop = png_crop(png, match, unit.options, calibration)
            middle = perf_counter()
            row = nodule_row(match.nodule) | {"cohorts": " ".join(cohorts_of(match.nodule))}
            row |= {"hu_calibrated": calibration.calibrated, "hu_rmse": calibration.rmse}
            row["hu_source"] = "calibrated" if calibration.calibrated else "estimated"
            writer.write(crop, row, nodule_votes(match.nodule))
        except Exception as error:  # whatever it is, it concerns this nodule alone
            if unit.wanted is None or name in unit.wanted:
                done.skipped.append(Skipped(name, "match", reason_of(error)))
            continue
        done.written.append(nodule_id)
        done.seconds["resample"] += middle - start
        done.seconds["write"] += perf_counter() - middle
    return done


def png_crop(
    png: PngNodule, match: PngMatch, options: CropOptions | None = None, calibration: Calibration | None = None
) -> NoduleCrop:
    """One nodule of the edition as a crop in HU (estimated without a ``calibration``), with the outlines of the
    annotations as masks.
    """
    calibration = calibration or hu_of_pictures(png.images, {}, name=png.name)
    ct = png_volume(png, match, calibration)
    shape = np.array(png.images.shape)[::-1]
    low = np.array(match.box.low) - match.offset
    first, last = np.maximum(low, 0), np.minimum(low + match.masks.shape[:0:-1], shape)  # what the pictures show
    i, j, k = (slice(a, b) for a, b in zip(first, last, strict=True))
    masks = place(match.masks, low, png.images.shape)[:, k, j, i]
    box = GridBox(_triple(first), _triple(last - 1))
    consensus = consensus_mask(masks)
    if consensus.any():
        centre = consensus_centre(ct, match.nodule, consensus, box)
    else:
        centre = ct.stored_index_to_mm(match.nodule.centroid - match.offset)
    return (options or CropOptions()).cut_marked(ct, masks, box, centre, match.nodule.nodule_id)


def _triple(values: NDArray[np.int64]) -> tuple[int, int, int]:
    i, j, k = values.tolist()
    return i, j, k


def png_volume(png: PngNodule, match: PngMatch, calibration: Calibration) -> CTVolume:
    """The pictures of one nodule of the edition as a piece of its scan, in HU, at its place."""
    nodule, (i, j, k) = match.nodule, match.offset.tolist()
    heights = nodule.slice_positions_mm[max(k, 0) : k + len(png.images)]
    if k < 0 or len(heights) < len(png.images):
        raise DataError(f"{png.name}: its slices lie outside the scan of {nodule.nodule_id}")
    if (np.diff(heights) <= 0).any():
        raise DataError(f"{png.name}: the scan of {nodule.nodule_id} has several slices at one z position here")
    spacing = nodule.pixel_spacing_mm
    hu = [] if calibration.calibrated else [f"HU estimated from grey levels, to about {calibration.rmse:.0f} HU"]
    return axial_volume(
        calibration.to_hu(png.images),
        heights,
        spacing,
        (i * spacing, j * spacing),
        nodule.slice_thickness_mm,
        series_uid=nodule.series_uid,
        patient_id=nodule.patient_id,
        slice_thickness_mm=nodule.slice_thickness_mm,
        issues=[*match.issues, *hu],
    )
