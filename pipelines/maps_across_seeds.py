"""Do retrained models draw the same map? Agreement of out-of-fold maps by method, output, number of models and lever.

    python pipelines/maps_across_seeds.py --runs runs/lora-seed0,runs/lora-seed1,runs/lora-seed2 --store runs/store \\
        --shuffled runs/dealt0,runs/dealt1 --nodules 100 --method cdam,relevance_propagation --out runs/repeat

One nodule of each sampled patient that no training saw (``--several``: nodules, whoever's). Writes repeatability.csv
(``nodules.map_repeatability``, with the lever in front: how many slices and turns each map is averaged over, and the
noise of Smooth CDAM), repeatability.svg (agreement over the number of models averaged) and faithfulness.csv: on
malignancy, with lung as fill, how far a single model's map and the mean map of all separate the model's deletion
curves, paired by nodule and model; with ``--masked`` also up to half of the pixels, read by copies of the runs' models
that know removed patches (``tune_masked.py``). A killed run goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from lidc_xai.commands.common import need_out, pick_device, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation import fidelity
from lidc_xai.evaluation.benchmark.curves import CurveFigure, draw_curves
from lidc_xai.evaluation.statistics import paired_difference
from lidc_xai.files import write_text
from lidc_xai.imaging import CropStore
from lidc_xai.models import NoduleModel
from lidc_xai.nodules import load_maps, map_repeatability, nodule_case
from lidc_xai.nodules._predict import loaded_models
from lidc_xai.nodules.ensemble import models_for
from lidc_xai.nodules.mean_maps import joined
from lidc_xai.nodules.repeatability import CONTROLS
from lidc_xai.progress import say, track
from lidc_xai.run import Run

LEVERS = {"one slice": (1, 1), "three slices": (3, 1), "eight turns": (1, 8), "three slices and eight turns": (3, 8)}
"""Lever -> slices and turns that a map is averaged over."""
POINTS = 11


class Options(Config):
    """Runs to compare."""

    runs: list[str] = Field(min_length=1, description="Trainings of one recipe (runs or models), separated by commas.")
    store: Path = Field(description="The store of those runs.")
    shuffled: list[str] = Field([], description="Trainings on labels that were dealt out anew.")
    controls: list[str] = Field(list(CONTROLS), description=f"Of: {', '.join(CONTROLS)}; or none.")
    nodules: int = Field(100, ge=1, description="Patients to sample, one nodule of each.")
    several: bool = Field(False, description="Sample nodules, whether of one patient or not.")
    method: list[str] = Field(["cdam"], description="Methods at the first lever; the first one at all of them.")
    levers: list[str] = Field(list(LEVERS), description=f"Of: {', '.join(LEVERS)}.")
    sigmas: list[float] = Field([], description="Noises of smooth_cdam to compare, at the first lever.")
    faithful: int = Field(0, ge=0, description="Nodules on which the mean map's faithfulness is measured.")
    masked: list[str] = Field([], description="The runs' models tuned with patches removed, in the order of --runs.")


def compare(options: Options, run: Run) -> None:
    """Measure, and write both tables."""
    out, store = need_out(options), CropStore(options.store)
    runs, dealt = ([loaded_models(name) for name in words(names)] for names in (options.runs, options.shuffled))
    copies = masked_copies(words(options.masked), runs)
    ids = unseen_nodules(store, [*runs, *dealt], options.nodules, options.seed, options.several)
    device, tables = pick_device(options.device), []
    levers = words(options.levers)
    for name in levers:
        slices, turns = LEVERS[name]
        methods = words(options.method) if name == levers[0] else words(options.method)[:1]
        for method, more in [*((method, {}) for method in methods), *_sigmas(options, name)]:
            say(f"{name}: {method} {more or ''}")
            table = map_repeatability(
                runs, store, method, nodule_ids=ids, shuffled=dealt, folder=out / "maps" / _folder(name, method, more),
                slices=slices, turns=turns, seed=options.seed, device=device, controls=_controls(options), **more,
            )  # fmt: skip
            table.insert(0, "lever", name)
            table.insert(2, "sigma", more.get("sigma"))
            tables.append(table)
            write_csv(out / "repeatability.csv", pd.concat(tables, ignore_index=True).round(4))
    shown = pd.concat(tables, ignore_index=True)
    write_text(out / "repeatability.svg", draw_agreement(shown))
    shown = shown[shown["output"].isin(["all", "malignancy"])]
    columns = ["lever", "method", "sigma", "maps", "output", "k", "models", "nodules", "agreement", "low", "high"]
    print(shown[[*columns, "expected", "absolute", "identified"]].round(3).to_string(index=False))
    if options.faithful:
        folder = out / "maps" / _folder(levers[0], words(options.method)[0], {})
        rows = pd.DataFrame(
            faithfulness(runs, store, ids[: options.faithful], folder, words(options.method)[0], device, copies)
        )
        write_csv(out / "faithfulness.csv", rows.round(5))
        for read_by in ("", "masked_")[: 1 + bool(copies)]:
            single, mean = (rows[f"{read_by}{name}"].dropna() for name in ("single", "mean"))
            difference = paired_difference(mean, single, rows.loc[single.index, "patient_id"].tolist())
            interval = f"[{difference.low:.4f}, {difference.high:.4f}], p {difference.p:.3f}"
            print(f"area: {read_by}single {single.mean():.4f}, mean map {difference.difference:+.4f} {interval}")


def masked_copies(names: Sequence[str], runs: Sequence[Sequence[NoduleModel]]) -> list[NoduleModel]:
    """The tuned copies of the first so many runs; ``UsageError`` for more of them, or for one that reads or says
    something else than its run's models.
    """
    if len(names) > len(runs):
        raise UsageError(f"--masked names {len(names)} models, --runs {len(runs)}; give a copy of each run at most")
    copies = [loaded_models(name)[0] for name in names]
    for name, copy, models in zip(names, copies, runs, strict=False):
        if _read(copy) != _read(models[0]):
            raise UsageError(
                f"--masked {name}: is no copy of its run's model (other input or outputs); see tune_masked.py"
            )
    return copies


def _read(model: NoduleModel) -> tuple[Any, ...]:
    """What a copy has in common with its model: the input's numbers and the outputs."""
    told = model.preprocess
    return told.size, told.window, told.mean, told.std, told.channels, model.output_names


def draw_agreement(table: pd.DataFrame) -> str:
    """SVG text: ρ_k over k with its 95 % band, a line for each lever, method and kind of maps that the table holds.

    Panels: all outputs, malignancy.
    """
    keys = [name for name in ("lever", "method", "sigma", "maps") if name in table and table[name].nunique() > 1]
    names = table[keys or ["method"]].astype(str).agg(", ".join, axis=1)
    named = table.assign(x=table["k"], method=names, mean=table["agreement"])
    drawn = {name: named[named["output"] == name].assign(output="") for name in ("all", "malignancy")}
    figure = CurveFigure(
        "repeatability", ("all", "malignancy"), ("all outputs", "malignancy"), "models averaged, k",
        "rank correlation of two groups' maps", zero=True,
    )  # fmt: skip
    return draw_curves(figure, drawn)


def unseen_nodules(
    store: CropStore, runs: Sequence[Sequence[NoduleModel]], count: int, seed: int, several: bool = False
) -> list[str]:
    """``count`` nodules with an outline, one of each patient unless ``several``, of patients whom a model of every run
    never saw.
    """
    table = store.manifest[store.manifest["n_readers"] >= 3].sample(frac=1, random_state=seed)
    table = table if several else table.drop_duplicates("patient_id")
    unseen = [all(models_for(models, str(patient)) for models in runs) for patient in table["patient_id"]]
    ids = table[unseen]["nodule_id"].tolist()[:count]
    if not ids:
        raise DataError(f"{store.path}: holds no patient that all runs left out; give runs on the same splits")
    return ids


def _controls(options: Options) -> list[str]:
    return [name for name in words(options.controls) if name != "none"]


def _sigmas(options: Options, lever: str) -> list[tuple[str, dict[str, Any]]]:
    return [("smooth_cdam", {"sigma": sigma}) for sigma in options.sigmas if lever == words(options.levers)[0]]


def _folder(lever: str, method: str, more: dict[str, Any]) -> str:
    return "-".join([lever.replace(" ", "-"), method, *(f"{value:g}" for value in more.values())])


def faithfulness(
    runs: Sequence[Sequence[NoduleModel]],
    store: CropStore,
    ids: Sequence[str],
    folder: Path,
    method: str,
    device: str = "cpu",
    masked: Sequence[NoduleModel] = (),
) -> Iterator[dict[str, Any]]:
    """Rows nodule_id, patient_id, run, single, mean: areas between the deletion curves of each run's malignancy.

    ``masked``: of the first so many runs, a copy that knows removed patches: masked_single and masked_mean are the
    areas up to 50 % of its curves.
    """
    for nodule_id in track(ids, "faithfulness", len(ids)):
        patient = str(store.row(nodule_id)["patient_id"])
        chosen = [(k, models_for(models, patient)[0]) for k, models in enumerate(runs)]
        paths = [folder / f"models-{k + 1}{f'-{fold + 1}' if len(runs[k]) > 1 else ''}" / "maps" for k, fold in chosen]
        maps = joined([load_maps(path, nodule_id, method) for path in paths])
        column = maps[0].output_names.index("malignancy")
        mean = np.mean([item.relevance[:, column] for item in maps], axis=0)
        for (k, fold), item in zip(chosen, maps, strict=True):
            model = runs[k][fold].to(device)
            case = nodule_case(model, store, nodule_id, item.views, {})
            images = case.images.to(device)
            kept = {"replacement": "lung", "masks": case.masks, "parenchyma": case.parenchyma, "points": POINTS}
            readers: dict[str, dict[str, Any]] = {"": {}}
            if k < len(masked):
                readers["masked_"] = {"model_masked": masked[k].to(device), "up_to": 50.0}
            areas = {
                f"{read_by}{name}": float(
                    fidelity(model, images, torch.from_numpy(scores), "malignancy", **kept, **more).area.mean()
                )
                for read_by, more in readers.items()
                for name, scores in (("single", item.relevance[:, column]), ("mean", mean))
            }
            yield {"nodule_id": nodule_id, "patient_id": patient, "run": k, **areas}


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("maps_across_seeds", Options, compare, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
