"""``lidc-xai explain``: maps of a store's nodules."""

from __future__ import annotations

from pydantic import Field

from lidc_xai.commands.common import (
    ModelConfig,
    need_models,
    need_out,
    need_path,
    pick_device,
    usable_nodules,
    verb,
    what_to_look_at,
    words,
)
from lidc_xai.errors import UsageError
from lidc_xai.run import Run


class ExplainConfig(ModelConfig):
    """Explain every output of a model on the nodules of a store.

    Maps are raw and signed, of the middle slices of the planes that the model reads. Writes maps/<nodule>/<method>.npz
    and predictions.csv; on request NIfTI that opens over the CT, and PNG sheets. Maps that are there already are kept.
    Of a cross-validated run each nodule is explained by the fold that never saw its patient, into fold-k/maps. Several
    runs or models (separated by commas) give their mean map, its standard error and the patches whose sign is stable
    (on sheets the others are grey), into maps/; each model's own maps lie in model-<hash>/maps.
    """

    method: list[str] = Field(["cdam"], description="Methods, separated by commas, or all; see lidc-xai info methods.")
    options: dict[str, object] = Field({}, description="Options of the method, by --set options.samples=20.")
    format: list[str] = Field(["npz"], description="npz is always written; also nifti and png, separated by commas.")


@verb("lidc-xai explain --store runs/real --model runs/demo/model --out runs/maps --method cdam,attention")
def explain(config: ExplainConfig, run: Run) -> None:
    """Load, explain, write."""
    store_path, out = need_path(config.store, "--store"), need_out(config)
    formats = words(config.format)
    unknown = sorted(set(formats) - {"npz", "nifti", "png"})
    if unknown:
        raise UsageError(f"--format {','.join(unknown)}: choose from npz, nifti, png")
    from lidc_xai.csv_files import write_csv
    from lidc_xai.explain import list_methods
    from lidc_xai.files import write_json
    from lidc_xai.imaging import CropStore
    from lidc_xai.nodules._predict import predict
    from lidc_xai.nodules.explained import explain_out_of_fold, repeatability_rows
    from lidc_xai.reporting import export_nifti
    from lidc_xai.reporting.nodule.panels import draw_nodule_panels
    from lidc_xai.reporting.values import made_up

    store, models = CropStore(store_path), need_models(config.model, config.weights)
    wanted, device = usable_nodules(store, words(config.nodule), run, config.limit), pick_device(config.device)
    methods = list_methods(models[0]) if config.method == ["all"] else words(config.method)
    if not methods:
        raise UsageError("--method names no method; see lidc-xai info methods")
    explained = explain_out_of_fold(models, store, out, wanted, methods, device, controls=False, options=config.options)
    maps, ids = explained.maps, [name for name in wanted if name in explained.maps[methods[0]].folders]
    run.skipped += explained.skipped
    if "nifti" in formats:
        run.skipped += export_nifti(store, out / "nifti", maps, ids).skipped
    if "png" in formats:
        for nodule_id in ids:
            maps_here = {method: by_id[nodule_id] for method, by_id in maps.items()}
            draw_nodule_panels(maps_here, store.load(nodule_id), out / "png", made_up(store.row(nodule_id)))
    predictions = predict(models, store, nodule_ids=wanted, device=device)
    write_csv(out / "predictions.csv", predictions)
    run.results = {"nodules": len(ids), "methods": methods, "outputs": list(models[0].output_names)}
    if len(models) > 1:
        write_json(out / "repeatability.json", repeatability_rows(maps))
    folders = sorted({folder for by_id in maps.values() for folder in by_id.folders.values()})
    where = ", ".join(str(folder / "maps") for folder in folders)
    print(f"{where}: {len(ids)} nodules × {len(methods)} methods × {len(models[0].output_names)} outputs")
    print(f"{out / 'predictions.csv'}: {what_to_look_at(predictions)}")
