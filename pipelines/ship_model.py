"""Put a cross-validated run's final model into the package, with the run's out-of-fold figures on its card.

python pipelines/ship_model.py --run runs/png-seed0 --name lidc-small
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import DataError
from lidc_xai.models import load_model, save_model
from lidc_xai.models.saved import SHIPPED
from lidc_xai.run import Run
from lidc_xai.training.loop.run_files import read_metrics

MOST_BYTES = 12 * 2**20


class Options(Config):
    """The run and the name."""

    run: Path = Field(description="A folder that cross-validate has finished.")
    name: str = Field(min_length=1, description="What the model is called: a folder under models/shipped.")


def ship(options: Options, run: Run) -> None:
    """Load, add the figures, save."""
    metrics = read_metrics(options.run)
    if metrics["leaks"] or metrics["simulated"]:
        raise DataError(f"{options.run}: of a leaking split or of simulated CT; such a model is not shipped")
    model = load_model(options.run / "model")
    figures = {
        f"out of fold, {name}": value["value"]
        for name, value in metrics["malignancy"]["all"].items()
        if isinstance(value, dict) and value.get("value") is not None
    }
    figures |= {f"out of fold, {name} MSE(z)": one["mse_z"]["value"] for name, one in metrics["biomarkers"].items()}
    counts = {"out of fold, nodules": metrics["nodules"], "out of fold, patients": metrics["patients"]}
    model.training_info["metrics"] = counts | figures
    folder = save_model(model, SHIPPED / options.name)
    size = sum(file.stat().st_size for file in folder.iterdir())
    if size > MOST_BYTES:
        raise DataError(f"{folder}: {size / 2**20:.0f} MiB; a shipped model has at most {MOST_BYTES >> 20}")
    print(f"{folder}: {size / 2**20:.1f} MiB")


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("ship_model", Options, ship, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
