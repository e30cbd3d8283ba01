"""``lidc-xai export``: files that viewers open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lidc_xai.commands.common import (
    ModelConfig,
    need_models,
    need_out,
    need_path,
    pick_device,
    usable_nodules,
    verb,
    words,
)
from lidc_xai.errors import UsageError
from lidc_xai.run import Run

if TYPE_CHECKING:
    from lidc_xai.reporting.parts import MapsByMethod


class ExportConfig(ModelConfig):
    """Export maps, masks, ratings and predictions as files that viewers open.

    nifti and nrrd lie in patient space, on the crop's grid or on the scanner's own voxels. dicom writes a Segmentation
    of the readers and their consensus, a Parametric Map per output, and a TID 1500 report, all in the source study:
    they carry its patient's identifiers (docs/privacy.md).
    """

    maps: Path | None = Field(None, description="The folder that explain wrote to; else the maps are computed.")
    method: list[str] = Field(["cdam"], description="Methods, separated by commas.")
    format: list[str] = Field(["nifti"], description="nifti, nrrd, dicom, separated by commas.")
    grid: Literal["crop", "scanner"] = Field("crop", description="Of nifti and nrrd: crop or scanner.")
    every_slice: bool = Field(False, description="Evaluate every scanned slice of the planes that the model reads.")
    dicom: Path | None = Field(
        None, description="The DICOM folder or zip that the store was made from (dicom, grid scanner)."
    )


@verb("lidc-xai export --store runs/store --model runs/cv --format nifti,dicom --dicom /data/LIDC-IDRI --out runs/x")
def export(config: ExportConfig, run: Run) -> None:
    """Write each format into its own folder."""
    store_path, out = need_path(config.store, "--store"), need_out(config)
    formats = words(config.format)
    unknown = sorted(set(formats) - {"nifti", "nrrd", "dicom"})
    if unknown or not formats:
        raise UsageError(f"--format {','.join(unknown)}: choose from nifti, nrrd, dicom")
    if "dicom" in formats and config.dicom is None:
        raise UsageError("--format dicom needs --dicom: the folder that the store was made from")
    dicom = need_path(config.dicom, "--dicom") if config.dicom else None
    from lidc_xai.imaging import CropStore
    from lidc_xai.nodules._predict import predict
    from lidc_xai.reporting import export_dicom, export_nifti

    store = CropStore(store_path)
    ids = usable_nodules(store, words(config.nodule), run, config.limit)
    maps: MapsByMethod = {}
    predictions = None
    if config.model:
        from lidc_xai.nodules.explained import explain_out_of_fold

        models, device = need_models(config.model, config.weights), pick_device(config.device)
        explained = explain_out_of_fold(
            models, store, config.maps or out, ids, words(config.method), device, controls=False,
            every_slice=config.every_slice,
        )  # fmt: skip
        maps = explained.maps
        run.skipped += explained.skipped
        predictions = predict(models, store, nodule_ids=ids, device=device)
    results = []
    volumes = [{"nifti": "nii.gz", "nrrd": "nrrd"}[name] for name in formats if name != "dicom"]
    if volumes:
        results.append(export_nifti(store, out / "volumes", maps, ids, config.grid, dicom, volumes))
    if dicom is not None and "dicom" in formats:
        name = Path(config.model).name if config.model else "no model"
        results.append(export_dicom(store, out / "dicom", dicom, maps, predictions, ids, name))
    run.skipped += [row for result in results for row in result.skipped]
    run.results = {"files": sum(len(result.paths) for result in results)}
    print(f"{out}: {run.results['files']} files")
