"""``lidc-xai explain``: maps of a store's nodules."""

from __future__ import annotations

from pathlib import Path

import typer
from pydantic import Field

from lidc_xai.commands.common import add_verb, need_out, need_path, pick_device, words
from lidc_xai.config import Config
from lidc_xai.run import Run


class ExplainConfig(Config):
    """Explain every output of a model on the nodules of a store.

    Maps are raw and signed, of the middle axial, coronal and sagittal planes. Writes
    maps/<nodule>/<method>.npz, with --nifti also one NIfTI a view and output that opens over the CT, and
    predictions.csv. Nodules whose maps are there already are kept.
    """

    store: Path | None = Field(None, description="A store made by prepare.")
    model: str | None = Field(None, description="A model folder made by train (or a shipped model's name).")
    nodule: list[str] = Field([], description="Nodule ids; repeat it or separate by commas. All by default.")
    method: list[str] = Field(["cdam"], description="Methods, separated by commas; see lidc-xai info methods.")
    options: dict[str, object] = Field({}, description="Options of the method, by --set options.samples=20.")
    nifti: bool = Field(False, description="Also write NIfTI maps in scanner space.")


def explain(config: ExplainConfig, run: Run) -> None:
    """Load, explain, write."""
    store_path = need_path(config.store, "--store")
    out = need_out(config)
    from lidc_xai.commands.common import need_model
    from lidc_xai.files import atomic_path
    from lidc_xai.imaging import CropStore
    from lidc_xai.nodule_maps import explain_store, load_maps, write_nifti_maps
    from lidc_xai.predict import predict

    store = CropStore(store_path)
    model = need_model(config.model)
    wanted = words(config.nodule) or store.nodule_ids
    methods = words(config.method)
    device = pick_device(config.device)
    ids = explain_store(model, store, out, wanted, methods, device, **config.options)
    if config.nifti:
        for nodule_id in ids:
            for method in methods:
                write_nifti_maps(load_maps(out / "maps", nodule_id, method), store.load(nodule_id), out / "nifti")
    predictions = predict(model, store, nodule_ids=ids)
    with atomic_path(out / "predictions.csv") as temporary:
        predictions.to_csv(temporary, index=False)
    run.results = {"nodules": len(ids), "methods": methods, "outputs": list(model.output_names)}
    print(f"{out / 'maps'}: {len(ids)} nodules × {len(methods)} methods × {len(model.output_names)} outputs")


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    add_verb(
        app,
        "explain",
        ExplainConfig,
        explain,
        "lidc-xai explain --store runs/real --model runs/demo/model --out runs/maps --method cdam,attention",
    )
