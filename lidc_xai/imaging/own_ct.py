"""One's own CT: crops around given points or under given masks, without LIDC annotations, in the same kind of store.

Patients have pseudonyms in it unless their IDs are asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lidc_xai.errors import DataError, reason_of
from lidc_xai.imaging.crops.crop import CropOptions
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.crops.resample import CropGrid, resample_mask
from lidc_xai.imaging.ct.dicom_index import is_medium
from lidc_xai.imaging.ct.reading import read_ct
from lidc_xai.imaging.ct.volume import AIR_HU, CTVolume
from lidc_xai.imaging.mask_files import NamedMask, read_structures, referenced_series
from lidc_xai.imaging.points import NamedPoint, read_points
from lidc_xai.imaging.prepare import PrepareResult
from lidc_xai.imaging.pseudonym import Identity, identity_of
from lidc_xai.imaging.store.crop_store import StoreWriter
from lidc_xai.imaging.structures import choose_nodules
from lidc_xai.progress import track
from lidc_xai.skipped import Skipped


def prepare_points(
    ct_path: Path | str,
    points_csv: Path | str,
    out: Path | str,
    size_mm: float = 32.0,
    spacing_mm: float = 1.0,
    *,
    interpolation: str = "linear",
    padding_hu: float = AIR_HU,
    series_uid: str | None = None,
    keep_ids: bool = False,
) -> PrepareResult:
    """Crop one CT around every point of a CSV file (see :func:`~lidc_xai.imaging.points.read_points`) into ``out``.

    A point outside the scan, or a row without three numbers, is a row of ``skipped.csv``. The patient's ID is replaced
    by a pseudonym everywhere (:mod:`lidc_xai.imaging.pseudonym`) unless ``keep_ids``. Raises what ``read_ct`` and
    ``read_points`` raise. Crops are added to a store that has others of the same rule.

    >>> rows = "nodule_id,x_lps,y_lps,z_lps\\nmine,{:.1f},{:.1f},{:.1f}\\n".format(*crop.centre_mm)
    >>> _ = (folder / "points.csv").write_text(rows)
    >>> result = prepare_points(dicom, folder / "points.csv", folder / "points", keep_ids=True)
    >>> CropStore(folder / "points").nodule_ids
    ['mine']
    """
    options = CropOptions(size_mm, spacing_mm, interpolation, padding_hu)
    ct = read_ct(ct_path, series_uid)
    who = identity_of(ct, ct_path, keep_ids)
    points, unusable = read_points(points_csv, f"{who.prefix}-p")

    def cut(point: NamedPoint, name: str) -> NoduleCrop:
        return options.cut(ct, point.to_lps(ct), name)

    lost = [Skipped(who.nodule_id(name), "points", reason) for name, reason in unusable]
    targets = [(who.nodule_id(point.name), point) for point in points]
    return _fill(ct, who, out, "points", keep_ids, options, targets, cut, lost)


def prepare_mask(
    ct_path: Path | str,
    mask_path: Path | str,
    out: Path | str,
    size_mm: float = 32.0,
    spacing_mm: float = 1.0,
    *,
    interpolation: str = "linear",
    padding_hu: float = AIR_HU,
    series_uid: str | None = None,
    components: bool = False,
    roi: Sequence[str] = (),
    keep_ids: bool = False,
) -> PrepareResult:
    """Crop one CT around every nodule of a mask file: DICOM SEG, RTSTRUCT or a label volume, on any grid.

    ``roi``: names of structures (``*`` and ``?`` as in file names); without it every structure is taken that is not
    called like an organ or a target volume. One that reaches over more than 60 mm is never a nodule. What is left out
    is a row of ``skipped.csv`` (:mod:`lidc_xai.imaging.structures`). The crop's centre is the middle of the structure's
    bounding box; the structure is the crop's one reader mask and its consensus. ``components``: every connected part is
    a nodule of its own. Of a folder with several series the one that the SEG or RTSTRUCT names is taken. ``keep_ids``:
    as in :func:`prepare_points`. Raises what ``read_ct`` and ``read_structures`` raise, and DataError where no
    structure is left.

    >>> from lidc_xai.imaging.ct.formats.volume_file import write_nifti
    >>> mask = np.zeros(ct.array.shape, np.uint8)
    >>> mask[5:9, 200:208, 200:208] = 1
    >>> write_nifti(folder / "mask.nii.gz", mask, ct.affine)
    >>> len(prepare_mask(dicom, folder / "mask.nii.gz", folder / "masked").written)
    1
    """
    options = CropOptions(size_mm, spacing_mm, interpolation, padding_hu)
    named = referenced_series(mask_path)
    # The series that a mask names matters only where there is a choice: in a folder or a zip.
    ct = read_ct(ct_path, series_uid or (named if is_medium(Path(ct_path)) else None))
    who = identity_of(ct, ct_path, keep_ids)
    chosen, refused = choose_nodules(read_structures(mask_path, ct, components), roi)
    if not chosen:
        why = f"no structure that can be a nodule: {who.scrub(refused[0][1])}" if refused else "marks no voxel"
        raise DataError(f"{mask_path}: {why}")

    def cut(mask: NamedMask, name: str) -> NoduleCrop:
        crop = options.cut(ct, mask.centre_mm, name)
        drawn = resample_mask(mask.grid, mask.mask, mask.box, CropGrid(crop.affine, crop.ct.shape))
        crop.reader_masks, crop.consensus = drawn[np.newaxis], drawn
        if mask.grid is not ct:
            crop.issues += [f"mask: {issue}" for issue in mask.grid.issues]
        crop.larger_than_box = mask.extent_mm > size_mm
        if crop.larger_than_box:
            crop.issues.append(f"the mask reaches over {mask.extent_mm:.1f} mm: larger than the {size_mm:g} mm box")
        return crop

    lost = [Skipped(who.nodule_id(f"{who.prefix}-{name}"), "mask", reason) for name, reason in refused]
    targets = [(who.nodule_id(f"{who.prefix}-{mask.name}"), mask) for mask in chosen]
    return _fill(ct, who, out, "mask", keep_ids, options, targets, cut, lost)


def _fill(
    ct: CTVolume,
    who: Identity,
    out: Path | str,
    source: str,
    keep_ids: bool,
    options: CropOptions,
    targets: Iterable[tuple[str, Any]],
    cut: Callable[[Any, str], NoduleCrop],
    lost: list[Skipped],
) -> PrepareResult:
    """Cut and write every target; those that cannot be cut become skipped rows."""
    ids = "kept" if keep_ids else "pseudonyms"  # the two do not mix in one store
    rule = {"source": source, "patient_ids": ids, **options.rule()}
    writer = StoreWriter(out, size_mm=options.size_mm, spacing_mm=options.spacing_mm, rule=rule)
    result = PrepareResult(writer.path, skipped=list(lost))
    row = {  # what is known of a nodule without readers
        "patient_id": who.patient_id,
        "series_uid": ct.series_uid,
        "study_uid": ct.study_uid,
        "slice_thickness_mm": ct.slice_thickness_mm,
        "pixel_spacing_mm": ct.spacing_mm[1],
        "simulated": ct.simulated,
        "scanner": ct.scanner,
    }
    start = perf_counter()
    taken: set[str] = set()
    for name, target in track(list(targets), "cutting crops"):
        try:
            if name in taken or writer.holds_another(name, ct.series_uid, who.patient_id):
                raise DataError(f"nodule id {name!r} is taken by another nodule of the store; give it another name")
            crop = cut(target, name)
            crop.issues = [who.scrub(issue) for issue in crop.issues]
            writer.write(crop, row, [])
        except Exception as error:  # whatever it is, it concerns this target alone
            result.skipped.append(Skipped(name, "crop", reason_of(error)))
            continue
        taken.add(name)
        result.written.append(name)
    result.seconds["resample"] = perf_counter() - start
    result.skipped = [replace(row, reason=who.scrub(row.reason)) for row in result.skipped]
    result.close(writer)
    return result
