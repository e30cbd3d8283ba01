"""What makes two calls the same run: the key that is kept beside a run, so that it is continued or refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lidc_xai.errors import DataError, LidcXaiError, UsageError
from lidc_xai.files import read_json, sha256_of
from lidc_xai.models.weights import weights_file
from lidc_xai.training.options import MachineOptions

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore

_PLACE = {"device", "devices", "nodes", "logs", "trunk", "teacher"}
"""Where and how fast a run runs does not count, nor where its teacher's words lie."""


def run_key(store: CropStore, parts: list[list[str]], options: MachineOptions) -> dict[str, Any]:
    """Options, nodules and store of a run as plain values."""
    given = weights_by_hash(options.model_dump(mode="json", exclude=_PLACE))
    trunk = getattr(options, "trunk", None)
    if trunk is not None:  # where its tokens are kept does not count; that they are does, since they are rounded
        given["trunk"] = None if trunk.folder is None else trunk.precision
    return {
        "options": given,
        "nodules_sha256": hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
        "store_sha256": store.fingerprint.get("sha256"),
    }


def weights_by_hash(options: dict[str, Any]) -> dict[str, Any]:
    """Weights by name and hash: where they lie tells of somebody's machine, and another file there is another run."""
    named = {name: weights_by_hash(value) if isinstance(value, dict) else value for name, value in options.items()}
    weights = named.get("weights")
    if isinstance(weights, str) and Path(weights).exists():
        named["weights"] = f"{Path(weights).name} (sha256 {sha256_of(weights_file(Path(weights)))})"
    return named


def read_record(path: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The record at ``path``, None where there is none; ``UsageError`` where it is of another run than ``key``."""
    if not path.is_file():
        return None
    try:
        record = dict(read_json(path))
    except (DataError, ValueError, TypeError) as error:
        raise LidcXaiError(f"{path}: cannot be read ({error}); delete {path.parent} and start again") from error
    before = weights_by_hash(record.get("key", {}))  # records once held the path of the weights
    if before != key:
        differing = _first_difference(before, key)
        raise UsageError(f"{path.parent}: holds a run with another {differing}; choose another --out or delete it")
    return record


def _first_difference(old: dict[str, Any], new: dict[str, Any], name: str = "") -> str:
    for field in sorted(set(old) | set(new)):
        before, after = old.get(field), new.get(field)
        where = f"{name}.{field}".removeprefix(".").removeprefix("options.")
        if isinstance(before, dict) and isinstance(after, dict) and before != after:
            return _first_difference(before, after, where)
        if before != after:
            return f"{where} ({before!r}, now {after!r})"
    return name
