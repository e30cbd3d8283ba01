"""One's own CT: crops around given points or under given masks, without LIDC annotations, in the same kind of store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lidc_xai.errors import reason_of
from lidc_xai.imaging.crops.crop import crop_nodule
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.crops.resample import CropGrid, resample_mask
from lidc_xai.imaging.ct.reading import read_ct
from lidc_xai.imaging.ct.volume import AIR_HU, CTVolume
from lidc_xai.imaging.mask_files import NamedMask, read_masks, referenced_series
from lidc_xai.imaging.names import path_safe
from lidc_xai.imaging.points import NamedPoint, read_points
from lidc_xai.imaging.prepare import CropOptions, PrepareResult
from lidc_xai.imaging.store.crop_store import StoreWriter
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
) -> PrepareResult:
    """Crop one CT around every point of a CSV file (see :func:`~lidc_xai.imaging.points.read_points`) into ``out``.

    A point outside the scan, or a row without three numbers, is a row of ``skipped.csv``. Raises what ``read_ct`` and
    ``read_points`` raise. Crops are added to a store that has others of the same rule.
    """
    options = CropOptions(size_mm, spacing_mm, interpolation, padding_hu)
    stem = _stem(ct_path)
    points, unusable = read_points(points_csv, f"{stem}-p")
    ct = read_ct(ct_path, series_uid)

    def cut(point: NamedPoint) -> NoduleCrop:
        return _crop(ct, point.to_lps(ct), options, point.name)

    lost = [Skipped(name, "points", reason) for name, reason in unusable]
    return _fill(ct, out, "points", options, [(point.name, point) for point in points], cut, lost)


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
) -> PrepareResult:
    """Crop one CT around every structure of a mask file: DICOM SEG, RTSTRUCT or a label volume, on any grid.

    The crop's centre is the middle of the structure's bounding box; the structure is the crop's one reader mask and its
    consensus. ``components``: every connected part is a nodule of its own. Of a folder with several series the one that
    the SEG or RTSTRUCT names is taken. Raises what ``read_ct`` and ``read_masks`` raise.
    """
    options = CropOptions(size_mm, spacing_mm, interpolation, padding_hu)
    ct = read_ct(ct_path, series_uid or _series_in(ct_path, referenced_series(mask_path)))
    masks = read_masks(mask_path, ct, components)
    stem = _stem(ct_path)

    def cut(mask: NamedMask) -> NoduleCrop:
        crop = _crop(ct, mask.centre_mm, options, f"{stem}-{mask.name}")
        drawn = resample_mask(mask.grid, mask.mask, mask.box, CropGrid(crop.affine, crop.ct.shape))
        crop.reader_masks, crop.consensus = drawn[np.newaxis], drawn
        if mask.grid is not ct:
            crop.issues += [f"mask: {issue}" for issue in mask.grid.issues]
        crop.larger_than_box = mask.extent_mm > size_mm
        if crop.larger_than_box:
            crop.issues.append(f"the mask reaches over {mask.extent_mm:.1f} mm: larger than the {size_mm:g} mm box")
        return crop

    return _fill(ct, out, "mask", options, [(f"{stem}-{mask.name}", mask) for mask in masks], cut, [])


def _fill(
    ct: CTVolume,
    out: Path | str,
    source: str,
    options: CropOptions,
    targets: Iterable[tuple[str, Any]],
    cut: Callable[[Any], NoduleCrop],
    lost: list[Skipped],
) -> PrepareResult:
    """Cut and write every target; those that cannot be cut become skipped rows."""
    rule = {"source": source, **options.rule()}
    writer = StoreWriter(out, size_mm=options.size_mm, spacing_mm=options.spacing_mm, rule=rule)
    result = PrepareResult(writer.path, skipped=list(lost))
    start = perf_counter()
    for name, target in track(list(targets), "cutting crops"):
        try:
            crop = cut(target)
        except Exception as error:  # whatever it is, it concerns this target alone
            result.skipped.append(Skipped(name, "crop", reason_of(error)))
            continue
        writer.write(crop, _row(ct), [])
        result.written.append(name)
    result.seconds["resample"] = perf_counter() - start
    for row in result.skipped:
        writer.skip(row.nodule_id, row.stage, row.reason)
    writer.finish()
    return result


def _crop(ct: CTVolume, point: np.ndarray, options: CropOptions, name: str) -> NoduleCrop:
    return crop_nodule(
        ct,
        point,
        options.size_mm,
        options.spacing_mm,
        interpolation=options.interpolation,
        padding_hu=options.padding_hu,
        nodule_id=name,
    )


def _row(ct: CTVolume) -> dict[str, Any]:
    """What is known of a nodule without readers."""
    _, between_rows, _ = ct.spacing_mm
    return {
        "patient_id": ct.patient_id,
        "series_uid": ct.series_uid,
        "study_uid": ct.study_uid,
        "slice_thickness_mm": ct.slice_thickness_mm,
        "pixel_spacing_mm": between_rows,
        "simulated": ct.simulated,
        "scanner": ct.scanner,
    }


def _series_in(ct_path: Path | str, series_uid: str | None) -> str | None:
    """The series a mask names matters only where there is a choice: in a folder."""
    return series_uid if Path(ct_path).is_dir() else None


def _stem(ct_path: Path | str) -> str:
    name = Path(ct_path).resolve().name
    for suffix in (".gz", ".zip", ".nii", ".nrrd", ".nhdr", ".mhd", ".mha", ".dcm"):
        name = name.removesuffix(suffix)
    return path_safe(name, "ct")
