"""Put the final models of cross-validated runs into the package, with the runs' out-of-fold figures on their cards.

    python pipelines/ship_model.py --runs runs/student --name lidc-small
    python pipelines/ship_model.py --runs runs/lora-seed0,runs/lora-seed1,runs/lora-seed2 \\
        --figures runs/lora-ensemble --name lidc-dinov2

Several runs become an ensemble: their averages' figures, intervals and calibration (``--figures``, of
pipelines/ensemble_runs.py) are those of each member. Models fine-tuned by LoRA are kept as adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from lidc_xai.commands.common import words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import DataError, UsageError
from lidc_xai.models import load_model, save_model
from lidc_xai.models.saved import SHIPPED
from lidc_xai.run import Run
from lidc_xai.training.intervals import fit_record
from lidc_xai.training.loop.run_files import read_metrics, read_predictions

MOST_BYTES = 4 * 2**20


class Options(Config):
    """The runs and the name."""

    runs: list[str] = Field(min_length=1, description="Folders that cross-validate has finished, separated by commas.")
    figures: Path | None = Field(None, description="Where their averages were evaluated (none: the one run itself).")
    name: str = Field(min_length=1, description="What the model is called: a folder under models/shipped.")


def ship(options: Options, run: Run) -> None:
    """Load, add the figures and the intervals, save."""
    folders = [Path(name) for name in words(options.runs)]
    if options.figures is None and len(folders) > 1:
        raise UsageError("--figures is missing: of several runs, the folder that pipelines/ensemble_runs.py wrote")
    measured = options.figures or folders[0]
    info = training_facts(measured)
    home = SHIPPED / options.name
    for number, folder in enumerate(folders, 1):
        model = load_model(folder / "model")
        model.training_info |= info
        model.training_info.pop("map_anchors", None)
        if "malignancy" in info["intervals"]:
            model.calibration["malignancy"] = tuple(info["intervals"]["malignancy"])
        place = home if len(folders) == 1 else home / f"member-{number}"
        save_model(model, place, adapter_only=model.adapter is not None)
    size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        raise DataError(f"{home}: {size / 2**20:.1f} MiB; a shipped model has at most {MOST_BYTES >> 20}")
    print(f"{home}: {size / 2**20:.1f} MiB")


def training_facts(folder: Path) -> dict[str, Any]:
    """What a card and a prediction need of the out-of-fold figures in ``folder``."""
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
    covered = {name: figure["all"]["coverage"]["value"] for name, figure in metrics["intervals"].items()}
    record = fit_record(read_predictions(folder)) | {"coverage": covered}
    return {"metrics": counts | figures, "intervals": record}


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("ship_model", Options, ship, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
