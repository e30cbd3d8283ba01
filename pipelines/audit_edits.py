"""The audit by edits: real nodules are changed in one property at a time, and models and maps are asked about it.

    python pipelines/audit_edits.py --config configs/audit_edits.yaml --store runs/png --model RUN/fold-0/model \\
        --trunk-weights dinov2_vits14.safetensors --out runs/audit

Nodules are of patients that none of the models has seen; with ``allow_seen`` seen.csv says how many a model had seen,
and its rows are no out-of-fold figures. OUT/parts/<nodule>.* hold one nodule each and are kept: the same command goes
on after a kill, ``--minutes`` ends the measuring early, and ``--shard i/n`` shares it. The tables are made of what is
there: dose_response.csv, selectivity.csv, sham.csv, own_measures.csv, maps.csv, realism.csv and audit.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from audit.measure import Measured, Reader, measure_nodule
from audit.realism import realism
from audit.tables import dose_response, map_table, own_measures, selectivity, sham_noise
from pydantic import Field

from lidc_xai.commands.common import need_out, need_path, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import atomic_path, write_json, write_text
from lidc_xai.imaging import CropStore
from lidc_xai.models import NoduleModel, build_model, load_model
from lidc_xai.nodules.known import known_patients
from lidc_xai.nodules.maps import nodule_images
from lidc_xai.npz import read_npz
from lidc_xai.progress import say, track
from lidc_xai.ratings import OUTPUTS
from lidc_xai.run import Run
from lidc_xai.skipped import Skipped


class Audit(Config):
    """Fields of the script."""

    store: Path | None = Field(None, description="A store of real crops.")
    model: list[str] = Field([], description="Models (folders or shipped names), separated by commas.")
    trunk_weights: Path | None = Field(None, description="DINOv2 ViT-S/14, for the realism test; left out without it.")
    nodules: int = Field(100, ge=2, description="Nodules, drawn by the seed.")
    methods: list[str] = Field(["cdam", "attention", "gradcam", "attn_lrp"], description="Maps.")
    turns: int = Field(1, description="1, or 8 where the model averages its outputs over turns: eight times as long.")
    calibrated: bool = Field(True, description="Only nodules whose HU are known; off with --set.")
    allow_seen: bool = Field(False, description="Also nodules of patients that a model has seen.")
    minutes: float = Field(0.0, ge=0, description="End measuring after so many minutes; 0: when all are done.")
    shard: str = Field("0/1", description="i/n: only every n-th nodule from the i-th; tables are made by 0/1.")


def audit(config: Audit, run: Run) -> None:
    """Measure nodule by nodule, then write the tables."""
    index, count = _shard(config.shard)
    if config.out is not None and index:  # the folder is the first shard's; the others add parts to it
        run.out = config.out / f"shard-{index}"
    out = config.out if config.out is not None and index else need_out(config)
    store = CropStore(need_path(config.store, "--store"))
    names = words(config.model)
    if not names:
        raise UsageError("--model names no model")
    models = {_short(name): load_model(name) for name in names}
    ids = chosen_nodules(config, store, models)
    readers = [Reader(name, model, words(config.methods), config.turns) for name, model in models.items()]
    trunk = _trunk(config.trunk_weights) if config.trunk_weights else None
    started = time.monotonic()
    for nodule_id in track(ids[index::count], "audit", len(ids[index::count])):
        if config.minutes and time.monotonic() - started > 60 * config.minutes:
            say("the minutes are over; the same command goes on")
            break
        path = out / "parts" / f"{nodule_id}-EDITED"
        if not path.with_suffix(".json").exists():
            try:
                save(measure_nodule(store.load(nodule_id), readers, trunk, config.seed), path, nodule_id)
            except DataError as error:
                write_json(path.with_suffix(".json"), {"refused": [["all", str(error)]]})
    if index == 0:
        write_tables(config, out, store, models, trunk, run)


def chosen_nodules(config: Audit, store: CropStore, models: dict[str, NoduleModel]) -> list[str]:
    """Ids in a seeded order: of patients that no model knows, with readers' outlines and known HU."""
    table = store.manifest
    known = (
        set() if config.allow_seen else set().union(*(known_patients(model.training_info) for model in models.values()))
    )
    good = ~table["patient_id"].isin(known) & ~table["larger_than_box"] & (table["n_readers_masked"] > 0)
    if config.calibrated:
        good &= table["hu_calibrated"]
    ids = table["nodule_id"][good].sample(frac=1, random_state=config.seed).tolist()
    if len(ids) < 2:
        raise DataError(f"{store.path}: no nodule is left that the models have not seen; allow_seen shows them all")
    return ids[: config.nodules]


def save(found: Measured, path: Path, nodule_id: str) -> None:
    """One nodule's files; the JSON, written last, says that they are whole."""
    for kind, rows in (("outputs", found.outputs), ("maps", found.maps)):
        with atomic_path(path.with_suffix(f".{kind}.parquet")) as temporary:
            pd.DataFrame(rows).assign(nodule_id=nodule_id).to_parquet(temporary, index=False)
    with atomic_path(path.with_suffix(".features.npz")) as temporary, temporary.open("wb") as stream:
        names = np.array(list(found.features))
        np.savez(stream, names=names, values=np.array(list(found.features.values()), dtype=np.float32))
    write_json(path.with_suffix(".json"), {"refused": found.refused})


def write_tables(
    config: Audit, out: Path, store: CropStore, models: dict[str, NoduleModel], trunk: NoduleModel | None, run: Run
) -> None:
    """All tables from the parts that lie in OUT."""
    from lidc_xai.files import read_json

    patients = store.manifest.set_index("nodule_id")["patient_id"].astype(str)
    for path in sorted((out / "parts").glob("*.json")):
        nodule_id = path.stem.removesuffix("-EDITED")
        run.skipped += [Skipped(nodule_id, f"edit {what}", why) for what, why in read_json(path)["refused"]]

    def read(kind: str) -> pd.DataFrame:
        paths = sorted((out / "parts").glob(f"*.{kind}.parquet"))
        if not paths:
            raise DataError(f"{out}: no nodule could be measured; see skipped.csv")
        rows = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
        return rows.assign(patient_id=rows["nodule_id"].map(patients))

    rows, maps = read("outputs"), read("maps")
    once = rows.drop_duplicates("nodule_id")["patient_id"]
    seen = [
        {
            "model": name,
            "nodules": len(once),
            "of_patients_it_has_seen": int(once.isin(known_patients(model.training_info)).sum()),
        }
        for name, model in models.items()
    ]
    tables = {
        "seen": pd.DataFrame(seen),
        "own_measures": own_measures(rows),
        "dose_response": dose_response(rows),
        "selectivity": selectivity(rows, OUTPUTS),
        "sham": sham_noise(rows, OUTPUTS).round(3),
        "maps": map_table(maps),
    }
    if trunk is not None:
        name, model = next(iter(models.items()))
        kept = {}
        for path in sorted((out / "parts").glob("*.features.npz")):
            one = read_npz(path, ("names", "values"))
            kept[path.name.removesuffix("-EDITED.features.npz")] = dict(
                zip(one["names"].tolist(), one["values"], strict=True)
            )
        scaling = {key: sd for key, (_, sd) in model.target_scaling.items()}
        own = rows[rows["model"] == name]
        tables["realism"] = realism(
            own, kept, store.manifest, scaling, _features_of(store, trunk), (0.5, 1.0), config.seed
        )
    for name, table in tables.items():
        write_csv(out / f"{name}.csv", table)
    write_text(out / "audit.md", "\n\n".join(f"### {name}\n\n{_markdown(table)}" for name, table in tables.items()))
    print(out / "audit.md")


def _markdown(table: pd.DataFrame) -> str:
    lines = ["| " + " | ".join(map(str, table.columns)) + " |", "|" + "---|" * table.shape[1]]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in table.itertuples(index=False)]
    return "\n".join(lines) + "\n"


def _features_of(store: CropStore, trunk: NoduleModel) -> Any:
    kept: dict[str, np.ndarray] = {}

    def features(nodule_id: str) -> np.ndarray:
        if nodule_id not in kept:
            with torch.inference_mode():
                images = nodule_images(trunk, store.load(nodule_id), ("axial",))
                kept[nodule_id] = trunk.features(images)[0].numpy()
        return kept[nodule_id]

    return features


def _trunk(weights: Path) -> NoduleModel:
    """DINOv2 as it was published: it has learned nothing from nodules."""
    return build_model("dinov2_vits14", ["malignancy"], need_path(weights, "--trunk-weights"), size=112, seed=0)


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 0 <= index < count:
        raise UsageError(f"--shard {text}: wanted i/n with 0 <= i < n")
    return index, count


def _short(name: str) -> str:
    """A model folder's name in the tables: run and fold."""
    parts = [part for part in Path(name).parts if part != "model"]
    return "/".join(parts[-2:]) if len(parts) > 1 else name


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("audit_edits", Audit, audit, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
