"""Kinds of damage to what the package itself wrote: stores, models, maps, splits, predictions."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fuzzing.mutators import Rng, damage_bytes, damage_text, pick
from fuzzing.watch import Kind
from lidc_xai.csv_files import write_csv
from lidc_xai.data import load_splits, make_splits
from lidc_xai.files import write_json
from lidc_xai.imaging import CropStore, NoduleCrop, StoreWriter
from lidc_xai.models import build_model, load_model, save_model
from lidc_xai.nodules.maps import NoduleMaps, load_maps
from lidc_xai.reporting.volume_files import map_on_grid
from lidc_xai.training import evaluate_predictions
from lidc_xai.training.assessment import read_metrics, read_predictions

RESULTS: dict[str, Kind] = {}
_SIDE = 16
_VALUES: tuple[Any, ...] = (
    None, "", "x", "../../etc/passwd", "/etc/passwd", -1, 0, 1e30, 10**12, float("nan"), float("inf"), True, [], {},
    [1, 2], "one", "vit_giant_patch14_224", {"a": {"b": []}},
)  # fmt: skip


def damage_json(path: Path, rng: Rng) -> str:
    """One field, anywhere: lost, or of another value or kind."""
    try:
        value = json.loads(path.read_text())
    except ValueError:
        return damage_bytes(path, rng)
    place, name = value, "document"
    while isinstance(place, dict | list) and place:
        keys = tuple(place) if isinstance(place, dict) else tuple(range(len(place)))
        name = pick(keys, rng)
        inside = place[name]
        if not (isinstance(inside, dict | list) and inside) or rng.random() < 0.3:
            if rng.random() < 0.3:
                del place[name]
                words = f"{name} lost"
            else:
                place[name] = pick(_VALUES, rng)
                words = f"{name} is {place[name]!r}"
            path.write_text(json.dumps(value))
            return f"{path.name}: {words}"
        place = inside
    return damage_bytes(path, rng)


def damage_parquet(path: Path, rng: Rng) -> str:
    """A column lost or of another kind, a row twice, an id that leads elsewhere."""
    try:
        table = pd.read_parquet(path)
    except Exception:  # damaged before
        return damage_bytes(path, rng)
    column, way = pick(tuple(table), rng), int(rng.integers(4))
    if way == 0:
        table, words = table.drop(columns=column), f"{column} lost"
    elif way == 1:
        value = pick(("x", "../x", -1, 1e30, "n" * 300), rng)
        table, words = table.assign(**{column: [value] * len(table)}), f"{column} is {value!r}"
    elif way == 2:
        table, words = pd.concat([table, table.iloc[:1]]), "a row twice"
    else:
        table, words = table.iloc[:0], "no row"
    table.to_parquet(path, index=False)
    return f"{path.name}: {words}"


def _crop(name: str, seed: int) -> NoduleCrop:
    rng = np.random.default_rng(seed)
    masks = rng.random((2, _SIDE, _SIDE, _SIDE)) > 0.7
    hu = rng.normal(-500, 300, masks.shape[1:]).astype(np.float32)
    return NoduleCrop(hu, np.eye(4), masks, masks.all(axis=0), ["found"], name, "1.2.3")


def _write_store(folder: Path) -> None:
    writer = StoreWriter(folder / "store", size_mm=_SIDE, spacing_mm=1.0, rule={"kind": "fuzz"})
    for seed, name in enumerate(("one", "two")):
        crop = _crop(name, seed)
        assert crop.consensus is not None
        writer.write(crop, {"patient_id": name}, [], {"spiculation": crop.consensus})
    writer.finish()


def _damage_store(folder: Path, rng: Rng) -> str:
    paths = [path for path in sorted((folder / "store").rglob("*")) if path.is_file()]
    path = pick(tuple(paths), rng)
    if rng.random() < 0.15:
        other = pick(tuple(other for other in paths if other != path), rng)
        shutil.copy(other, path)
        return f"{path.name} is a copy of {other.parent.name}/{other.name}"
    if rng.random() < 0.1:
        path.unlink()
        return f"{path.name} lost"
    if path.suffix == ".json" and rng.random() < 0.8:
        return damage_json(path, rng)
    if path.suffix == ".parquet" and rng.random() < 0.8:
        return damage_parquet(path, rng)
    return damage_bytes(path, rng)


def _read_store(folder: Path) -> None:
    store = CropStore(folder / "store")
    for nodule_id in store.nodule_ids:
        store.load(nodule_id)
        store.causes(nodule_id)
    settings = store.fingerprint
    writer = StoreWriter(
        store.path, size_mm=settings["size_mm"], spacing_mm=settings["spacing_mm"], rule=settings.get("rule", {})
    )
    writer.done("one")
    writer.finish()


RESULTS["store"] = Kind(_write_store, _damage_store, _read_store)


def _write_model(folder: Path) -> None:
    save_model(build_model("test_vit", ["malignancy", "texture"], size=32, seed=0), folder / "model")


def _damage_model(folder: Path, rng: Rng) -> str:
    description, weights = folder / "model" / "model.json", folder / "model" / "weights.safetensors"
    if rng.random() < 0.6:
        return damage_json(description, rng)
    words = damage_bytes(weights if rng.random() < 0.6 else description, rng, int(pick((200, 10**9), rng)))
    if rng.random() < 0.7:  # so that what follows the hash meets it too
        try:
            known = json.loads(description.read_text())
            known["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
            description.write_text(json.dumps(known))
        except (ValueError, TypeError):
            pass
    return words


RESULTS["model"] = Kind(_write_model, _damage_model, lambda folder: load_model(folder / "model"))


def _write_maps(folder: Path) -> None:
    rng = np.random.default_rng(0)
    NoduleMaps(
        "one", "cdam", ("axial",), (7,), ("malignancy",), rng.normal(size=(1, 1, 4, 4)).astype(np.float32),
        rng.normal(size=(1, 1)).astype(np.float32), (4.0, 4.0), "exact", {},
    ).save(folder)  # fmt: skip


def _damage_maps(folder: Path, rng: Rng) -> str:
    """Bytes, which the zip's sums tell; or an array or a field of another kind in a zip that is whole."""
    path = folder / "one" / "cdam.npz"
    if rng.random() < 0.3:
        return damage_bytes(path, rng)
    with np.load(path) as stored:
        arrays = dict(stored)
    name = pick(tuple(arrays), rng)
    if name == "meta":
        described = path.with_name("meta.json")
        described.write_text(str(arrays["meta"]))
        words = damage_json(described, rng)
        arrays["meta"] = np.array(described.read_text(errors="replace"))
        described.unlink()
    else:
        held = arrays.pop(name)
        others = {
            "lost": None, "of texts": held.astype(str), "flat": held.ravel(), "longer": np.repeat(held, 2, axis=0),
            "NaN": np.full_like(held, np.nan), "empty": held[:0], "whole numbers": held.astype(int),
        }  # fmt: skip
        how = pick(tuple(others), rng)
        words = f"{name} {how}"
        if others[how] is not None:
            arrays[name] = others[how]
    np.savez_compressed(path, **arrays)
    return words


def _read_maps(folder: Path) -> None:
    """Read, and what every page and file does with them."""
    maps = load_maps(folder, "one", "cdam")
    map_on_grid(maps, "malignancy", (_SIDE,) * 3, np.eye(4), np.zeros((2, 2, 2, 3)), np.eye(3))


RESULTS["maps"] = Kind(_write_maps, _damage_maps, _read_maps)


def _table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    count = 24
    return pd.DataFrame(
        {
            "nodule_id": [f"n{number}" for number in range(count)],
            "patient_id": [f"p{number // 2}" for number in range(count)],
            "fold": np.arange(count) % 2,
            "label": np.arange(count) // 2 % 2,
            "n_readers": 4,
            "simulated": False,
            "malignancy_logit": rng.normal(size=count),
            "malignancy_probability": rng.random(count),
            "texture": rng.uniform(1, 5, count),
            "texture_train_sd": 1.0,
            "texture_readers": rng.uniform(1, 5, count),
            "texture_readers_sd": 0.5,
            "malignancy_readers": rng.uniform(1, 5, count),
            "malignancy_readers_sd": 0.5,
            "diameter_readers": rng.uniform(3, 30, count),
            "diameter_readers_sd": 1.0,
            "split_kind": "patient",
        }
    )


def _write_run(folder: Path) -> None:
    write_csv(folder / "predictions.csv", _table())
    write_json(folder / "metrics.json", evaluate_predictions(folder / "predictions.csv", resamples=10))


def _damage_run(folder: Path, rng: Rng) -> str:
    path = folder / pick(("predictions.csv", "predictions.csv", "metrics.json"), rng)
    if path.suffix == ".json":
        return damage_json(path, rng)
    return damage_text(path, rng) if rng.random() < 0.7 else damage_bytes(path, rng)


def _read_run(folder: Path) -> None:
    read_metrics(folder)
    read_predictions(folder)
    evaluate_predictions(folder / "predictions.csv", resamples=10)


RESULTS["run"] = Kind(_write_run, _damage_run, _read_run, slow=2)


def _write_splits(folder: Path) -> None:
    make_splits(_table(), 3, validation_share=0.34).save(folder / "splits.json")


def _damage_either(name: str) -> Callable[[Path, Rng], str]:
    def damage(folder: Path, rng: Rng) -> str:
        return damage_json(folder / name, rng) if rng.random() < 0.7 else damage_bytes(folder / name, rng)

    return damage


RESULTS["splits"] = Kind(
    _write_splits, _damage_either("splits.json"), lambda folder: load_splits(folder / "splits.json")
)
