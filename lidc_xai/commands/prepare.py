"""``lidc-xai prepare`` and ``check``: CT and annotations in, a store of crops out; and a look before cutting."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lidc_xai.commands.common import need_out, need_path, verb, words
from lidc_xai.config import Config
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import read_json
from lidc_xai.run import Run
from lidc_xai.skipped import ABSENT, in_words

if TYPE_CHECKING:
    from lidc_xai.imaging.prepare import PrepareResult


class PrepareConfig(Config):
    """Cut nodules out of CT into a store.

    The store holds crops and masks as NIfTI that opens over the CT, tables, and what was skipped and why. A
    killed run continues with the same command.
    """

    dicom: Path | None = Field(None, description="Folder (or zip) of LIDC-IDRI's DICOM series, in any layout.")
    slices: Path | None = Field(None, description="Or the PNG edition of LIDC-IDRI: its zip or folder.")
    hu: Path | None = Field(
        None, description="With --slices: CSV of known HU lines (patient_id, nodule, slice, slope, intercept, rmse_hu)."
    )
    ct: Path | None = Field(
        None, description="Or one CT of your own: a DICOM folder, zip or DICOMDIR, NIfTI, NRRD or MHD."
    )
    points: Path | None = Field(
        None, description="With --ct: CSV of points in LPS mm, RAS mm or voxels (its header says)."
    )
    mask: Path | None = Field(None, description="With --ct: DICOM SEG, RTSTRUCT or label volume of the nodules.")
    series_uid: str | None = Field(None, description="With --ct: which series of the folder.")
    components: bool = Field(False, description="With --mask: every connected part is a nodule of its own.")
    roi: list[str] = Field([], description="With --mask: names of the nodules' structures; * and ? allowed, repeat it.")
    keep_ids: bool = Field(False, description="With --ct: keep the patient's ID; else a pseudonym stands for it.")
    cohort: str | None = Field(None, description="Only the nodules of a named cohort; see lidc-xai info cohorts.")
    size_mm: float = Field(32.0, gt=0, le=128, description="Side of the box in mm.")
    spacing_mm: float = Field(1.0, gt=0.1, le=5, description="Voxel of the crop in mm.")
    interpolation: str = Field("linear", description="linear or bspline.")
    jobs: int = Field(1, description="Processes; each holds one CT. -1: one per core.")
    cluster: str | None = Field(None, description="Address of a Dask scheduler to use instead of --jobs.")


@verb("lidc-xai prepare --dicom /data/LIDC-IDRI --cohort paper854 --out runs/store --jobs 4")
def prepare(config: PrepareConfig, run: Run) -> None:
    """Read, cut, write, and count what was left out."""
    out = need_out(config)
    given = [name for name in ("dicom", "slices", "ct") if getattr(config, name)]
    if len(given) != 1:
        raise UsageError("give one of --dicom DIR (LIDC-IDRI), --slices ZIP (PNG edition), --ct PATH (your own)")
    if config.hu and not config.slices:
        raise UsageError("--hu goes with --slices: DICOM and own CT have their HU")
    result = {"dicom": _from_lidc, "slices": _from_slices, "ct": _from_own_ct}[given[0]](config, out)
    run.skipped = result.skipped
    run.results = {"written": len(result.written), "already_done": len(result.kept), "skipped": len(result.skipped)}
    for row in [row for row in result.skipped if row.stage != ABSENT][:5]:
        print(f"  skipped {row.nodule_id} ({row.stage}): {row.reason}", file=sys.stderr)
    said = [f"{len(result.written)} written", f"{len(result.kept)} already done", in_words(result.skipped)]
    if issues := read_json(out / "fingerprint.json")["counts"]["with_issues"]:
        said.append(f"{issues} with issues, see the column issues of manifest.csv")
    print(f"{out}: {', '.join(said)}")


def _from_lidc(config: PrepareConfig, out: Path) -> PrepareResult:
    from lidc_xai.imaging import prepare_dicom

    return prepare_dicom(
        need_path(config.dicom, "--dicom"),
        out,
        cohort=config.cohort,
        size_mm=config.size_mm,
        spacing_mm=config.spacing_mm,
        jobs=config.jobs,
        interpolation=config.interpolation,
        cluster=config.cluster,
    )


def _from_slices(config: PrepareConfig, out: Path) -> PrepareResult:
    from lidc_xai.imaging import prepare_png

    source = need_path(config.slices, "--slices")
    lines = need_path(config.hu, "--hu") if config.hu else None
    return prepare_png(source, out, config.cohort, config.size_mm, config.spacing_mm, config.jobs, hu=lines)


def _from_own_ct(config: PrepareConfig, out: Path) -> PrepareResult:
    from lidc_xai.imaging import prepare_mask, prepare_points

    if (config.points is None) == (config.mask is None):
        raise UsageError("--ct goes with --points or --mask, one of them")
    ct, box = need_path(config.ct, "--ct"), (config.size_mm, config.spacing_mm)
    options: dict[str, Any] = {"interpolation": config.interpolation, "series_uid": config.series_uid}
    options["keep_ids"] = config.keep_ids
    if config.points:
        if config.roi:
            raise UsageError("--roi chooses structures of --mask; the points of --points are chosen in their file")
        return prepare_points(ct, need_path(config.points, "--points"), out, *box, **options)
    options |= {"components": config.components, "roi": words(config.roi)}
    return prepare_mask(ct, need_path(config.mask, "--mask"), out, *box, **options)


class CheckConfig(Config):
    """Draw what would be cut, before anything is computed.

    Slice, box, point and contours in one picture, so that a wrong coordinate system is seen at once. Exit code 1
    where a target cannot be cut.
    """

    path: Path | None = Field(None, description="A CT: DICOM folder, zip or DICOMDIR, NIfTI, NRRD or MHD.")
    point: str | None = Field(None, description="x,y,z in --system.")
    points: Path | None = Field(None, description="CSV of points.")
    mask: Path | None = Field(None, description="DICOM SEG, RTSTRUCT or label volume.")
    roi: list[str] = Field([], description="With --mask: names of the nodules' structures; * and ? allowed, repeat it.")
    nodule: str | None = Field(None, description="A LIDC nodule id.")
    series_uid: str | None = Field(None, description="Which series of the folder.")
    system: Literal["lps", "ras", "voxel"] = Field("lps", description="Of --point: lps, ras (mm) or voxel.")
    size_mm: float = Field(32.0, gt=0, le=128, description="Side of the box in mm.")


@verb("lidc-xai check ct.nii.gz --point=-61.5,12,-104", argument="path")
def check(config: CheckConfig, run: Run) -> None:
    """Draw, describe, and fail where something cannot be cut."""
    path = need_path(config.path, "PATH")
    from lidc_xai.imaging import check_ct

    if config.roi and config.mask is None:
        raise UsageError("--roi chooses structures of --mask, which is not given")
    out = need_out(config) / "check.png" if config.out else Path("check.png")
    result = check_ct(
        path,
        _three_numbers(config.point),
        config.nodule,
        out,
        points=config.points,
        mask=config.mask,
        roi=words(config.roi),
        system=config.system,
        series_uid=config.series_uid,
        size_mm=config.size_mm,
    )
    print("\n".join(result.lines))
    print(result.picture)
    if result.problems:
        raise DataError(f"{len(result.problems)} of the targets cannot be cut: {result.problems[0]}")


def _three_numbers(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3:
        raise UsageError(f"--point {text}: wanted three numbers x,y,z, for example --point=-61.5,12,-104")
    return numbers
