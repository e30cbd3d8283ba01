"""``lidc-xai edit``: real nodules with one property changed, as a store of their own."""

from __future__ import annotations

from pathlib import Path

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
from lidc_xai.errors import DataError, UsageError
from lidc_xai.run import Run
from lidc_xai.skipped import read_skipped


class EditConfig(ModelConfig):
    """Change one property of a store's nodules by a dose, into an edited store.

    Edits: remove, diameter, calcification, margin, spiculation, lobulation, texture, sphericity, subtlety. Doses go
    from 0 (untouched) to 1; diameter and margin also down to -1; remove takes 0 or 1. The new store is marked EDITED in
    its manifest, its file names and on every page; predict, explain and report run on it. With --model also doses.html:
    a slider with outputs and maps by dose.
    """

    store: Path | None = Field(None, description="A store made by prepare, with readers' outlines.")
    edit: str | None = Field(None, description="What is changed.")
    dose: list[str] = Field(["0", "0.5", "1"], description="Doses, separated by commas.")
    method: list[str] = Field(["cdam"], description="Maps on the slider page, separated by commas.")


@verb("lidc-xai edit --store runs/real --edit spiculation --dose 0,0.5,1 --out runs/spiculated")
def edit(config: EditConfig, run: Run) -> None:
    """Edit, and with a model draw the slider page."""
    store_path = need_path(config.store, "--store")
    if not config.edit:
        raise UsageError("--edit is missing: name what is changed")
    doses = [_number(word) for word in words(config.dose)]
    from lidc_xai.imaging import CropStore
    from lidc_xai.simulate.edits.edit import check_dose, edit_store

    for dose in doses:
        check_dose(config.edit, dose)
    store = CropStore(store_path)
    models = need_models(config.model, config.weights) if config.model else []
    out = need_out(config)
    wanted = usable_nodules(store, words(config.nodule), run, config.limit)
    edited = edit_store(store, out, config.edit, doses, nodule_ids=wanted, seed=config.seed)
    run.skipped += read_skipped(out)
    if not len(edited):
        raise DataError(run.skipped[0].reason if run.skipped else f"{store_path}: holds no nodule")
    run.results = {"edited": len(edited)}
    print(f"{out}: {len(edited)} edited crops")
    if models:
        from lidc_xai.nodules._predict import predict
        from lidc_xai.nodules.explained import explain_out_of_fold
        from lidc_xai.reporting.edited import slider_page

        device, methods = pick_device(config.device), words(config.method)
        predictions = predict(models, edited, device=device)
        explained = explain_out_of_fold(
            models, edited, out / "explained", edited.nodule_ids, methods, device, controls=False
        )
        run.skipped += explained.skipped
        print(slider_page(edited, predictions, explained.maps, out / "doses.html"))


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise UsageError(f"--dose {word}: wanted numbers, separated by commas") from None
