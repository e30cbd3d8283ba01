"""``lidc-xai prepare``: CT and annotations in, a store of crops out."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from pydantic import Field

from lidc_xai.commands.common import add_verb, need_out, need_path
from lidc_xai.config import Config
from lidc_xai.run import Run


class PrepareConfig(Config):
    """Cut nodules out of CT into a store.

    The store holds crops and masks as NIfTI that opens over the CT, tables, and what was skipped and why. A killed run continues with the same command.
    """

    dicom: Path | None = Field(None, description="Folder of DICOM series in any layout.")
    cohort: str | None = Field(None, description="Only the nodules of a named cohort; see lidc-xai info cohorts.")
    size_mm: float = Field(32.0, gt=0, le=128, description="Side of the box in mm.")
    spacing_mm: float = Field(1.0, gt=0.1, le=5, description="Voxel of the crop in mm.")
    interpolation: str = Field("linear", description="linear or bspline.")
    jobs: int = Field(1, description="Processes; each holds one CT. -1: one per core.")
    cluster: str | None = Field(None, description="Address of a Dask scheduler to use instead of --jobs.")


def prepare(config: PrepareConfig, run: Run) -> None:
    """Read, cut, write, and count what was left out."""
    dicom = need_path(config.dicom, "--dicom")
    out = need_out(config)
    from lidc_xai.imaging import prepare_dicom

    result = prepare_dicom(
        dicom,
        out,
        cohort=config.cohort,
        size_mm=config.size_mm,
        spacing_mm=config.spacing_mm,
        jobs=config.jobs,
        interpolation=config.interpolation,
        cluster=config.cluster,
    )
    run.skipped = result.skipped
    run.results = {"written": len(result.written), "already_done": len(result.kept), "skipped": len(result.skipped)}
    print(f"{out}: {len(result.written)} written, {len(result.kept)} already done, {len(result.skipped)} skipped")
    for row in result.skipped[:5]:
        print(f"  skipped {row.nodule_id} ({row.stage}): {row.reason}", file=sys.stderr)


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    add_verb(
        app,
        "prepare",
        PrepareConfig,
        prepare,
        "lidc-xai prepare --dicom /data/LIDC-IDRI --cohort paper854 --out runs/store --jobs 4",
    )
