"""Put cross-validated models into the package, with their out-of-fold figures on their cards.

    python pipelines/ship_model.py --run runs/student --name lidc-small
    python pipelines/ship_model.py --run runs/lora-seed0 --folds --name lidc-dinov2

The run's final model; with ``--folds`` its fold models as one ensemble, which needs no final model and reads each
LIDC-IDRI patient by the member that never saw them. Models fine-tuned by LoRA are kept as adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import DataError
from lidc_xai.models import load_model, save_model
from lidc_xai.models.saved import SHIPPED, member_folders
from lidc_xai.run import Run
from lidc_xai.training.assessment import read_metrics

MOST_BYTES = 4 * 2**20


class Options(Config):
    """The run and the name."""

    run: Path = Field(description="A folder that cross-validate has finished.")
    folds: bool = Field(False, description="Ship the fold models as an ensemble.")
    name: str = Field(min_length=1, description="What the model is called: a folder under models/shipped.")


def ship(options: Options, run: Run) -> None:
    """Load, add the figures, save."""
    figures, home = out_of_fold_figures(options.run), SHIPPED / options.name
    sources = member_folders(options.run) if options.folds else [options.run / "model"]
    for number, source in enumerate(sources, 1):
        model = load_model(source)
        model.training_info["metrics"] = figures
        place = home / f"member-{number}" if options.folds else home
        save_model(model, place, adapter_only=model.adapter is not None)
    size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        raise DataError(f"{home}: {size / 2**20:.1f} MiB; a shipped model has at most {MOST_BYTES >> 20}")
    print(f"{home}: {size / 2**20:.1f} MiB")


def out_of_fold_figures(folder: Path) -> dict[str, Any]:
    """What a model's card says of the run's out-of-fold predictions."""
    metrics = read_metrics(folder)
    if metrics["leaks"] or metrics["simulated"]:
        raise DataError(f"{folder}: of a leaking split or of simulated CT; such a model is not shipped")
    figures = {
        f"out of fold, {name}": value["value"]
        for name, value in metrics["malignancy"]["all"].items()
        if isinstance(value, dict) and value.get("value") is not None
    }
    figures |= {f"out of fold, {name} MSE(z)": one["mse_z"]["value"] for name, one in metrics["biomarkers"].items()}
    counts = {"out of fold, nodules": metrics["nodules"], "out of fold, patients": metrics["patients"]}
    return counts | figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("ship_model", Options, ship, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
