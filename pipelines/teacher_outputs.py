"""What cross-validated models say of the nodules that they learned from: the file that a student learns from.

    python pipelines/teacher_outputs.py --runs runs/dinov2-seed0,runs/dinov2-seed1 --store runs/png \\
        --trunk runs/trunk-dinov2 --out runs/teacher
    lidc-xai cross-validate --config configs/lidc_png.yaml --store runs/png --out runs/student \\
        --set fit.teacher.outputs=runs/teacher/teacher.csv

Writes teacher.csv: the mean over the runs, of each fold's nodules that all runs' models of this fold learned from. A
run without a final model teaches a final student by the mean of its folds. ``--trunk``: the runs' cached trunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from pydantic import Field

from lidc_xai.commands.common import need_out, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import UsageError
from lidc_xai.imaging import CropStore
from lidc_xai.models import NoduleModel, load_model
from lidc_xai.progress import say
from lidc_xai.run import Run
from lidc_xai.training import FitOptions
from lidc_xai.training.distillation import FINAL
from lidc_xai.training.fitting import planes_for, trunk_for
from lidc_xai.training.loop.module import evaluated


class Options(Config):
    """The teachers."""

    runs: list[str] = Field(min_length=1, description="Cross-validated runs on the same splits, separated by commas.")
    store: Path = Field(description="The store of those runs.")
    trunk: Path | None = Field(None, description="Their cached trunk (none: whole passes).")
    turns: int | None = Field(None, description="Turns to average over, 1 or 8 (none: as each model does).")


def teach(options: Options, run: Run) -> None:
    """Evaluate every model on what it learned from, average, write."""
    store, out = CropStore(options.store), need_out(options)
    tables = [run_table(Path(name), store, options) for name in words(options.runs)]
    table = mean_rows(tables, [name for name in tables[0] if name not in ("fold", "nodule_id")])
    write_csv(out / "teacher.csv", table)
    run.results = {"nodules by fold": {int(fold): len(rows) for fold, rows in table.groupby("fold")}}
    print(table.groupby("fold").size().to_string())


def mean_rows(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """Several teachers as one: the mean of ``columns`` over those that know a fold's nodule, where all of them do."""
    keys = ["fold", "nodule_id"]
    together = pd.concat(tables, ignore_index=True).groupby(keys, sort=True)[list(columns)]
    return together.mean()[together.size() == len(tables)].reset_index()


def run_table(folder: Path, store: CropStore, options: Options) -> pd.DataFrame:
    """A run's rows of every fold and of its final model, in whose place its folds may stand."""
    table = pd.concat(fold_tables(folder, store, options), ignore_index=True)
    if (table["fold"] == FINAL).any():
        return table
    together = table.drop(columns="fold").groupby("nodule_id").mean().reset_index()
    return pd.concat([table, together.assign(fold=FINAL)], ignore_index=True)


def fold_tables(folder: Path, store: CropStore, options: Options) -> Iterator[pd.DataFrame]:
    """A table of each fold's model of a run, and of its final model where there is one."""
    paths = [*sorted(folder.glob("fold-*/model")), *[path for path in [folder / "model"] if path.is_dir()]]
    if not paths:
        raise UsageError(f"{folder}: holds no fold-*/model; give a folder that cross-validate has finished")
    for path in paths:
        say(f"{folder.name}: {path.relative_to(folder)}")
        model = load_model(path)
        model.preprocess = replace(model.preprocess, turns=options.turns or model.preprocess.turns)  # type: ignore[arg-type]
        yield training_outputs(model, store, options.trunk)


def training_outputs(model: NoduleModel, store: CropStore, trunk: Path | None) -> pd.DataFrame:
    """fold, nodule_id and every output in its unit, for the nodules of the model's training patients."""
    info = model.training_info
    model.calibration = dict.fromkeys(model.calibration, (1.0, 0.0))  # its own logit: calibration is for readers of it
    learned = store.manifest["patient_id"].isin(set(info["train_patients"]))
    ids = store.manifest["nodule_id"][learned].tolist()
    options = FitOptions.model_validate(
        {**info["options"], "trunk": {**info["options"]["trunk"], "folder": str(trunk) if trunk else None}}
    )
    data = planes_for(
        store, ids, options.model_copy(update={"loss": options.loss.model_copy(update={"mask_weight": 0})})
    )
    cache = trunk_for(model, data, options)
    with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16-mixed"):  # as it learned
        units = model.in_units(evaluated(model, data, data.rows(ids), cache))
    table = pd.DataFrame(units.double().numpy(), columns=list(model.output_names))
    table.insert(0, "nodule_id", ids)
    table.insert(0, "fold", FINAL if info.get("fold") is None else int(info["fold"]))
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("teacher_outputs", Options, teach, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
