"""The store of crops on disk: a folder per nodule, tables over all of them, a fingerprint of what it was made from.

STORE/ manifest.parquet (+ .csv), votes.csv, crops/<nodule_id>/{ct,readers,consensus}.nii.gz + nodule.json, skipped.csv,
fingerprint.json. A nodule's folder appears whole or not at all, so a killed run is continued by running it again.
"""

from __future__ import annotations

import copy
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lidc_xai.annotations.tables import ROW_COLUMNS, VOTE_COLUMNS
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import State, atomic_path, plain, read_json, remove_half_written, state_of, write_json
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop, check_crop
from lidc_xai.imaging.store.crop_files import RECORD, read_causes, read_crop_files, read_record, write_crop_files
from lidc_xai.imaging.store.fingerprint import describe_store
from lidc_xai.skipped import Skipped, write_skipped

CROP_COLUMNS = (
    "size_mm", "spacing_mm", "centre_x_mm", "centre_y_mm", "centre_z_mm", "n_readers_masked", "padded",
    "padded_share", "larger_than_box", "hu_calibrated", "hu_source", "hu_rmse", "simulated", "edited", "scanner",
    "ct_mean_hu", "cohorts", "issues",
)  # fmt: skip
MANIFEST_COLUMNS = (*ROW_COLUMNS, *CROP_COLUMNS)
"""Columns of ``manifest.parquet``: those of a cohort, then what is known of the crop."""

LONGEST_ID = 120
"""Bytes of a nodule id: file names of maps, pages and exports are made of it, and a file name has 255 at most."""
_ID = re.compile(r"[^\W.-][^/\\\x00-\x1f]*")
_ADDED_LATER = ("padded_share", "hu_source", "hu_rmse", "edited")
"""Columns that a store of an earlier version lacks."""
KEPT_CROPS = 32
"""Crops that a store keeps in memory, those read last (some 300 KiB each): a report asks for one several times."""

_TEXT = {"nodule_id", "patient_id", "series_uid", "study_uid", "scanner", "hu_source", "cohorts", "issues", "edited"}
_WHOLE = {"scan_index", "cluster_index", "n_readers", "n_readers_masked", "label"}
_FLAGS = {"ambiguous", "padded", "larger_than_box", "hu_calibrated", "simulated"}
_FLAGS_OR_UNKNOWN = {"is_from_initial", "contrast_used"}


class CropStore:
    """A finished store, read only.

    ``manifest``: one row per nodule in nodule_id order, index 0 to n − 1 (columns :data:`MANIFEST_COLUMNS`);
    ``votes``: one row per reading; ``fingerprint``: counts, spacings, HU statistics, versions, rule, hash. Raises
    UsageError where the path is no store, DataError where the store is unfinished or damaged.

    >>> len(store), store.load(store.nodule_ids[0]).ct.shape, "malignancy_median" in store.manifest
    (7, (32, 32, 32), True)
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        settings = _read_settings(self.path)
        if settings is None:
            raise UsageError(f"{self.path}: is not a store of crops (no fingerprint.json); make one with prepare")
        if not settings.get("complete"):
            raise DataError(f"{self.path}: this store is unfinished; run the same prepare command again to complete it")
        self.fingerprint: dict[str, Any] = settings
        self._voxels = round(settings["size_mm"] / settings["spacing_mm"])
        try:
            self.manifest = _checked(pd.read_parquet(self.path / "manifest.parquet"))
            self.votes = pd.read_csv(self.path / "votes.csv")
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{self.path}: manifest or votes cannot be read ({reason}); run prepare again") from error
        self.nodule_ids: list[str] = self.manifest["nodule_id"].tolist()
        self._place = {nodule_id: place for place, nodule_id in enumerate(self.nodule_ids)}
        self._crops: OrderedDict[str, tuple[State, NoduleCrop]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_crops": OrderedDict()}

    def __len__(self) -> int:
        return len(self.nodule_ids)

    def load(self, nodule_id: str) -> NoduleCrop:
        """One crop: CT (z, y, x) in HU, its affine, readers' masks and consensus.

        DataError where a file is not the one that prepare wrote, or no box that a model could read. Of a crop that was
        read lately the same arrays come back, which is why they cannot be written into.
        """
        folder = self._folder(nodule_id)
        files = state_of(folder)
        kept = self._crops.get(nodule_id)
        if kept is None or kept[0] != files:
            crop = read_crop_files(folder, self._voxels)
            for array in (crop.ct, crop.reader_masks, crop.consensus):
                if array is not None:
                    array.setflags(write=False)
            kept = self._crops[nodule_id] = (files, crop)
            if len(self._crops) > KEPT_CROPS:
                self._crops.popitem(last=False)
        self._crops.move_to_end(nodule_id)
        return copy.copy(kept[1])

    def only(self, nodule_ids: Iterable[str]) -> CropStore:
        """The same store as if it held these nodules alone; nothing on disk changes.

        >>> len(store.only(store.nodule_ids[:2]))
        2
        """
        wanted = set(nodule_ids)
        for nodule_id in wanted:
            self._folder(nodule_id)
        view = copy.copy(self)
        view.manifest = self.manifest[self.manifest["nodule_id"].isin(wanted)].reset_index(drop=True)
        view.votes = self.votes[self.votes["nodule_id"].isin(wanted)].reset_index(drop=True)
        view.nodule_ids = view.manifest["nodule_id"].tolist()
        view._place = {nodule_id: place for place, nodule_id in enumerate(view.nodule_ids)}
        view._crops = OrderedDict()
        return view

    def sound(self, nodule_ids: Iterable[str] | None = None) -> tuple[list[str], list[Skipped]]:
        """Ids (default: all) whose crops load, and a row with the reason for each of the others."""
        good, lost = [], []
        for nodule_id in self.nodule_ids if nodule_ids is None else nodule_ids:
            try:
                self.load(nodule_id)
                good.append(nodule_id)
            except DataError as error:
                lost.append(Skipped(nodule_id, "store", str(error)))
        return good, lost

    def row(self, nodule_id: str) -> pd.Series:
        """The manifest's row of one nodule."""
        self._folder(nodule_id)
        return self.manifest.iloc[self._place[nodule_id]]

    def causes(self, nodule_id: str) -> dict[str, np.ndarray]:
        """By biomarker, the (z, y, x) bool voxels known to carry it: simulated and edited nodules only, else empty."""
        return read_causes(self._folder(nodule_id))

    def _folder(self, nodule_id: str) -> Path:
        if nodule_id not in self._place:
            raise UsageError(f"{self.path}: has no nodule {nodule_id!r}; its {len(self)} ids are in manifest.csv")
        return self.path / "crops" / nodule_id


class StoreWriter:
    """Fills a store, nodule by nodule, in any order and from several processes (pickle it to them; make it only once).

    ``rule``: JSON-able description of how crops are made. An existing store with another rule, size or spacing is a
    UsageError; one with the same is continued: :meth:`done` says what it has.

    >>> from lidc_xai.annotations import nodule_row, nodule_votes
    >>> writer = StoreWriter(folder / "written", size_mm=32, spacing_mm=1, rule="an example")
    >>> writer.write(crop, nodule_row(nodule), nodule_votes(nodule))
    >>> writer.finish().nodule_ids
    ['LIDC-IDRI-0475-s1-n0']
    """

    def __init__(self, path: Path | str, *, size_mm: float, spacing_mm: float, rule: Mapping[str, Any] | str) -> None:
        self.path = Path(path)
        self.size_mm, self.spacing_mm = float(size_mm), float(spacing_mm)
        self._settings = {"size_mm": self.size_mm, "spacing_mm": self.spacing_mm, "rule": plain(rule)}
        self._skipped: list[Skipped] = []
        self._check_same()
        remove_half_written(self.path)
        if _read_settings(self.path) is None:
            write_json(self.path / "fingerprint.json", {**self._settings, "complete": False})

    def _check_same(self) -> None:
        old = _read_settings(self.path)
        if old is None:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.glob("crops/*"))):
                raise UsageError(f"{self.path}: exists and is not a store of crops; choose another --out")
            return
        for name, value in self._settings.items():
            if old.get(name) != value:
                made = f"{self.path}: was made with {name} = {old.get(name)}, not {value}"
                raise UsageError(f"{made}; choose another --out or delete it")

    def done(self, nodule_id: str) -> bool:
        """Whether this nodule's folder is already there, whole; one with a damaged record is written anew."""
        folder = self._folder(nodule_id)
        if not (folder / RECORD).exists():
            return False
        try:
            read_record(folder)
        except DataError:
            return False
        return True

    def holds_another(self, nodule_id: str, series_uid: str, patient_id: str) -> bool:
        """Whether the store already has a nodule of this id that is of another series or patient."""
        if not self.done(nodule_id):
            return False
        row = read_record(self._folder(nodule_id))["row"]
        return (row["series_uid"] or "", row["patient_id"] or "") != (series_uid, patient_id)

    def write(
        self,
        crop: NoduleCrop,
        row: Mapping[str, Any],
        votes: list[dict[str, Any]],
        causes: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write one nodule atomically.

        ``row``: columns of ``nodule_row`` as far as known (an absent rating is NaN), ``hu_calibrated`` (default True),
        ``hu_source`` and ``hu_rmse`` (the PNG edition's: "calibrated" or "estimated", and the error in HU),
        ``simulated`` (default False), ``edited`` (what an edit did; default nothing) and ``cohorts`` (names with spaces
        between; default none); everything about the crop itself is taken from ``crop``. DataError, and nothing
        written, for a crop that no model could read.
        """
        check_crop(crop)
        record = {"row": self._complete_row(crop, row), "votes": votes}
        with atomic_path(self._folder(crop.nodule_id)) as folder:
            write_crop_files(folder, crop, record, causes)

    def skip(self, nodule_id: str, stage: str, reason: str) -> None:
        """Note a nodule that is not written; it becomes a row of ``skipped.csv`` in :meth:`finish`."""
        self._skipped.append(Skipped(nodule_id, stage, reason))

    def finish(self) -> CropStore:
        """Write manifest, votes, skipped and fingerprint over everything that the store holds, and open it."""
        records = []
        for folder in sorted(path.parent for path in self.path.glob(f"crops/*/{RECORD}")):
            try:
                records.append(read_record(folder))
            except DataError as error:
                self.skip(folder.name, "store", str(error))
        try:
            manifest = _manifest([record["row"] for record in records])
        except (TypeError, ValueError):  # a value of another kind than its column, in some record
            records = [record for record in records if self._fits(record["row"])]
            manifest = _manifest([record["row"] for record in records])
        votes = pd.DataFrame([vote for record in records for vote in record["votes"]], columns=list(VOTE_COLUMNS))
        with atomic_path(self.path / "manifest.parquet") as temporary:
            manifest.to_parquet(temporary, index=False)
        write_csv(self.path / "manifest.csv", _readable(manifest))
        write_csv(self.path / "votes.csv", votes)
        write_skipped(self.path, self._skipped)
        description = describe_store(manifest, records, len(set(self._skipped)))
        write_json(self.path / "fingerprint.json", {**self._settings, "complete": True, **plain(description)})
        return CropStore(self.path)

    def _fits(self, row: dict[str, Any]) -> bool:
        """Whether a row can stand in the manifest; one that cannot is noted as skipped."""
        try:
            _manifest([row])
        except (TypeError, ValueError) as error:
            words = f"{row['nodule_id']}/{RECORD}: {error}; delete the folder and run prepare again"
            self.skip(row["nodule_id"], "store", words)
            return False
        return True

    def _folder(self, nodule_id: str) -> Path:
        problem = id_problem(nodule_id)
        if problem:
            raise UsageError(problem)
        return self.path / "crops" / nodule_id

    def _complete_row(self, crop: NoduleCrop, row: Mapping[str, Any]) -> dict[str, Any]:
        x, y, z = crop.centre_mm.tolist()
        known = {"hu_calibrated": True, "simulated": False, "patient_id": "", "ambiguous": False, "annotation_ids": ()}
        made = {
            "nodule_id": crop.nodule_id,
            "series_uid": crop.series_uid or row.get("series_uid", ""),
            "size_mm": self.size_mm,
            "spacing_mm": self.spacing_mm,
            "centre_x_mm": x,
            "centre_y_mm": y,
            "centre_z_mm": z,
            "n_readers_masked": 0 if crop.reader_masks is None else int(crop.reader_masks.any(axis=(1, 2, 3)).sum()),
            "padded": bool(crop.padded),
            "padded_share": float(crop.padded_share),
            "larger_than_box": bool(crop.larger_than_box),
            "ct_mean_hu": float(crop.ct.mean(dtype=np.float64)),
            "issues": "; ".join(crop.issues),
        }
        values = {"n_readers": made["n_readers_masked"], **known, **row, **made}
        return {name: values.get(name) for name in MANIFEST_COLUMNS}


def id_problem(nodule_id: object) -> str:
    """Why ``nodule_id`` cannot be a folder's name in a store, or nothing."""
    if not isinstance(nodule_id, str) or not _ID.fullmatch(nodule_id):
        return f"nodule id {str(nodule_id)[:60]!r} cannot be a folder's name; use letters, digits, - and _"
    if len(nodule_id.encode()) > LONGEST_ID:
        return f"nodule id {nodule_id[:40]!r}… has {len(nodule_id.encode())} bytes; at most {LONGEST_ID}"
    return ""


def _checked(manifest: pd.DataFrame) -> pd.DataFrame:
    """The table where it has every column and each id once, none of which leads out of the store."""
    missing = [name for name in MANIFEST_COLUMNS if name not in manifest and name not in _ADDED_LATER]
    if missing:
        raise ValueError(f"manifest.parquet has no column {missing[0]!r}")
    problems = [problem for problem in map(id_problem, manifest["nodule_id"]) if problem]
    if problems:
        raise ValueError(f"manifest.parquet: {problems[0]}")
    twice = manifest["nodule_id"][manifest["nodule_id"].duplicated()]
    if len(twice):
        raise ValueError(f"manifest.parquet has nodule {twice.iloc[0]!r} twice")
    absent = [name for name in _ADDED_LATER if name not in manifest]
    return manifest.assign(**{name: "" if name in _TEXT else np.nan for name in absent})


def _read_settings(path: Path) -> dict[str, Any] | None:
    file = path / "fingerprint.json"
    if not file.is_file():
        return None
    try:
        settings = dict(read_json(file))
        if not all(0 < float(settings[name]) < math.inf for name in ("size_mm", "spacing_mm")):
            raise ValueError("size_mm and spacing_mm are not positive")
    except (DataError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file}: is damaged ({error}); delete it and run prepare again") from error
    return settings


def _manifest(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table with one fixed type per column, whatever is missing."""
    table = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS))
    for name in MANIFEST_COLUMNS:
        if name in _TEXT:
            table[name] = table[name].fillna("").astype(str)
        elif name in _WHOLE:
            table[name] = table[name].astype("Int64")
        elif name in _FLAGS:
            table[name] = table[name].astype(bool)
        elif name in _FLAGS_OR_UNKNOWN:
            table[name] = table[name].astype("boolean")
        elif name != "annotation_ids":
            table[name] = table[name].astype("float64")
    return table.sort_values("nodule_id", ignore_index=True)


def _readable(manifest: pd.DataFrame) -> pd.DataFrame:
    """For the CSV: lists of annotation ids as words."""
    return manifest.assign(annotation_ids=[" ".join(map(str, ids)) for ids in manifest["annotation_ids"]])
