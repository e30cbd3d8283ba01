"""How good are the estimated HU of the PNG edition? Compared with true HU, where there are any.

    python pipelines/validate_png_hu.py --slices LIDC-IDRI-slices.zip \\
        --dicom LIDC-IDRI/LIDC-IDRI-0001 --volumes volumes51.npz --out runs/png-hu

Per nodule: median difference (estimated minus true) over lung (-960 to -700 HU) and over soft tissue (-150 to 250 HU),
after both were smoothed alike. Beside it the same for one fixed scale for all pictures (-1010 to 1070 HU). The volumes
are cubes of 51 mm at 1 mm, named N_nodM_annK for patient N + 1; a cube counts where a picture of that patient is found
in it (correlation above 0.97).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.signal import fftconvolve

from lidc_xai.annotations import Nodule, load_nodules
from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import DataError
from lidc_xai.files import write_json
from lidc_xai.imaging import read_ct
from lidc_xai.imaging.png.learned import hu_of_pictures
from lidc_xai.imaging.png.lines import HuLines
from lidc_xai.imaging.png.match import match_nodule
from lidc_xai.imaging.png.source import PngEdition, PngNodule
from lidc_xai.run import Run

FIXED = (2080 / 255, -1010.0)
SAME = 0.97
HALF_MM = 18


class Options(Config):
    """The PNG edition and what is known of it."""

    slices: Path = Field(description="The PNG edition.")
    dicom: Path = Field(description="LIDC-IDRI-0001.")
    volumes: Path = Field(description="volumes51.npz.")
    hu: Path | None = Field(None, description="Calibration file: known lines are measured too, where there are any.")


def validate(options: Options, run: Run) -> None:
    """Write OUT/png_hu.json and print the errors."""
    out = need_out(options)
    edition = PngEdition(options.slices)
    known: dict[str, list[Nodule]] = {}
    for nodule in load_nodules():
        known.setdefault(nodule.patient_id, []).append(nodule)
    exist = {(patient, group) for patient, groups in edition.patients.items() for group in groups}
    exist |= {(patient, nodule.cluster_index) for patient, nodules in known.items() for nodule in nodules}
    lines = HuLines(options.hu, exist) if options.hu else None
    rows = [_against_dicom(edition, known, options.dicom, lines)]
    rows += _against_volumes(edition, known, options.volumes, lines)
    summary = {}
    for method, tissue in product(("calibrated", "estimated", "fixed"), ("lung", "soft")):
        errors = np.abs([row[method][tissue] for row in rows if row.get(method, {}).get(tissue) is not None])
        if len(errors):
            median, most, mean = float(np.median(errors)), float(np.percentile(errors, 90)), float(errors.mean())
            summary[f"{method}_{tissue}"] = {"n": len(errors), "median": median, "p90": most, "mean": mean}
            numbers = f"median {median:.0f}  90 % {most:.0f}  mean {mean:.0f} HU"
            print(f"{method:9s} {tissue}: n {len(errors)}  |error| {numbers}")
    write_json(out / "png_hu.json", {"summary": summary, "nodules": rows})


def _errors(true: NDArray, grey: NDArray, slope: float, intercept: float) -> dict[str, float | None]:
    true, estimated = (gaussian_filter(v, 0.8)[2:-2, 2:-2] for v in (true.astype(float), grey * slope + intercept))
    ranges = {"lung": (-960, -700), "soft": (-150, 250)}
    inside = {name: (true > low) & (true < high) for name, (low, high) in ranges.items()}
    return {name: float(np.median((estimated - true)[m])) if m.sum() > 25 else None for name, m in inside.items()}


def _row(png: PngNodule, k: int, true: NDArray, grey: NDArray, lines: HuLines | None) -> dict:
    known = lines.of(png.patient_id, png.group).get(k) if lines is not None else None
    given = {"calibrated": _errors(true, grey, known.slope, known.intercept)} if known is not None else {}
    calibration = hu_of_pictures(png.images, {})
    estimated = _errors(true, grey, calibration.slope[k], calibration.intercept[k])
    return {"nodule": png.name, "slice": k, "estimated": estimated, "fixed": _errors(true, grey, *FIXED), **given}


def _against_dicom(edition: PngEdition, known: dict[str, list[Nodule]], folder: Path, lines: HuLines | None) -> dict:
    ct = read_ct(folder)
    png = edition.read("LIDC-IDRI-0001", 0)
    match = match_nodule(png, known["LIDC-IDRI-0001"])
    i, j, first = match.offset.tolist()
    k = len(png.images) // 2
    place = int(np.abs(ct.slice_z_mm - match.nodule.slice_positions_mm[first + k]).argmin())
    rows, columns = png.images.shape[1:]
    return _row(png, k, ct.stored[place, j : j + rows, i : i + columns], png.images[k].astype(float), lines)


def _against_volumes(
    edition: PngEdition, known: dict[str, list[Nodule]], path: Path, lines: HuLines | None
) -> Iterator[dict]:
    for _, _, (_, png, k, true, grey) in matched_cubes(edition, known, path):
        yield _row(png, k, true, grey, lines)


def matched_cubes(
    edition: PngEdition, known: dict[str, list[Nodule]], path: Path
) -> Iterator[tuple[NDArray, NDArray, tuple[float, PngNodule, int, NDArray, NDArray]]]:
    """Every cube (HU, mask; z last) in which a nodule of its patient is found, with the best of these findings."""
    with np.load(path, allow_pickle=False) as volumes:
        ids, cubes = volumes["ids"], volumes["hu"]
        masks = np.unpackbits(volumes["mask_packed"], axis=-1)[..., : cubes.shape[-1]].astype(bool)
    for name, cube, mask in zip(ids, cubes, masks, strict=True):
        patient = f"LIDC-IDRI-{int(str(name).split('_')[0]) + 1:04d}"
        match = [
            match
            for group in edition.patients.get(patient, [])
            if (match := _find(edition, patient, group, known[patient], cube.astype(float))) is not None
        ]
        if match:
            yield cube, mask, max(match, key=lambda item: item[0])


def _find(
    edition: PngEdition, patient: str, group: int, nodules: list[Nodule], cube: NDArray
) -> tuple[float, PngNodule, int, NDArray, NDArray] | None:
    """The best place of a nodule's largest slice in the cube (x, y, z at 1 mm), where it is really there."""
    png = edition.read(patient, group)
    try:
        spacing = match_nodule(png, nodules).nodule.pixel_spacing_mm
    except DataError:
        return None
    marked = png.masks.any(axis=0)
    k = int(marked.sum(axis=(1, 2)).argmax())
    centre = np.argwhere(marked[k]).mean(axis=0)
    at = np.meshgrid(*(c + np.arange(-HALF_MM, HALF_MM) / spacing for c in centre), indexing="ij")
    grey = map_coordinates(png.images[k].astype(float), at, order=1, mode="nearest")
    best = max(
        ((*_correlation(cube[:, :, z], grey), z) for z in range(15, 36)), key=lambda item: item[0]
    )  # the nodule lies in the middle of the cube
    value, row, column, z = best
    if value < SAME:
        return None
    return value, png, k, cube[row : row + 2 * HALF_MM, column : column + 2 * HALF_MM, z], grey


def _correlation(image: NDArray, part: NDArray) -> tuple[float, int, int]:
    """Highest normalised correlation of ``part`` inside ``image``, and where."""
    n = part.size
    ones = np.ones(part.shape)
    mean = fftconvolve(image, ones, "valid") / n
    spread = np.sqrt(np.maximum(fftconvolve(image**2, ones, "valid") / n - mean**2, 1.0))
    part = (part - part.mean()) / part.std()
    value = fftconvolve(image, part[::-1, ::-1], "valid") / (n * spread)
    row, column = np.unravel_index(value.argmax(), value.shape)
    return float(value[row, column]), int(row), int(column)


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("validate_png_hu", Options, validate, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
