"""A store of edited crops: nodules of another store at every dose of one edit, marked as edited wherever they go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.store.crop_store import CropStore, StoreWriter
from lidc_xai.progress import track
from lidc_xai.ratings import BIOMARKERS
from lidc_xai.simulate.edits.edit import EDITS, check_dose, edit_nodule

MARK = "-EDITED-"
"""Stands in the id of every edited nodule, and so in the names of its maps, pages and exports."""


def edit_store(
    store: CropStore, out: Path | str, name: str, doses: Sequence[float], *, nodule_ids: Sequence[str] | None = None,
    seed: int = 0,
) -> CropStore:  # fmt: skip
    """Write a store with ``nodule_ids`` (None: all) of ``store`` at each of ``doses`` of the edit ``name``.

    A nodule is called after its original, edit and dose (``LIDC-IDRI-0475-s1-n0-EDITED-margin+0.50``) and keeps its
    patient, so that it is still read by the models that never saw that patient. The manifest's column ``edited`` says
    what was done; the voxels that changed are kept as the cause of the biomarker of the edit's name. Ratings are those
    of the original. What cannot be edited is a row of skipped.csv. An unfinished store made with the same edit and seed
    is continued; more doses and nodules may be added to it.

    >>> edited = edit_store(store, folder / "edited", "diameter", [0, 1], nodule_ids=store.nodule_ids[:1])
    >>> edited.nodule_ids
    ['LIDC-IDRI-0004-s1-n0-EDITED-diameter+0.00', 'LIDC-IDRI-0004-s1-n0-EDITED-diameter+1.00']
    """
    chosen = sorted({float(dose) for dose in doses})
    if not chosen:
        raise UsageError("give at least one dose")
    for dose in chosen:
        check_dose(name, dose)
    if Path(out).resolve() == store.path.resolve():
        raise UsageError(f"{out}: is the store that is edited; choose another --out")
    size, spacing = store.fingerprint["size_mm"], store.fingerprint["spacing_mm"]
    rule = {"kind": "edited", "edit": name, "seed": seed, "of": store.fingerprint.get("sha256", "")}
    writer = StoreWriter(out, size_mm=size, spacing_mm=spacing, rule=rule)
    ids = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    for nodule_id in track(ids, f"edit {name}", len(ids)):
        for dose in chosen:
            new_id = edited_id(nodule_id, name, dose)
            if not writer.done(new_id):
                try:
                    _write_one(writer, store, nodule_id, new_id, name, dose, seed)
                except DataError as error:
                    writer.skip(new_id, "edit", str(error))
    return writer.finish()


def edited_id(nodule_id: str, name: str, dose: float) -> str:
    """The id of an edited nodule.

    >>> edited_id("LIDC-IDRI-0003-s1-n1", "margin", -0.5)
    'LIDC-IDRI-0003-s1-n1-EDITED-margin-0.50'
    """
    return f"{nodule_id}{MARK}{name}{dose:+.2f}"


def original_of(nodule_id: str) -> tuple[str, str, float]:
    """(original id, edit, dose) of an edited nodule's id; ``DataError`` for another.

    >>> original_of("LIDC-IDRI-0003-s1-n1-EDITED-margin-0.50")
    ('LIDC-IDRI-0003-s1-n1', 'margin', -0.5)
    """
    original, mark, edit = nodule_id.rpartition(MARK)
    name = edit[:-5]
    if not mark or name not in EDITS:
        raise DataError(f"{nodule_id}: is not the id of an edited nodule; make the store with lidc-xai edit")
    return original, name, float(edit[-5:])


def _write_one(
    writer: StoreWriter, store: CropStore, nodule_id: str, new_id: str, name: str, dose: float, seed: int
) -> None:
    crop, changed = edit_nodule(store.load(nodule_id), name, dose, seed)
    crop.nodule_id = new_id
    known = {str(key): value for key, value in store.row(nodule_id).items()}
    row: dict[str, Any] = {**known, "edited": f"{name}, dose {dose:g}, seed {seed}"}
    own = store.votes[store.votes["nodule_id"] == nodule_id].assign(nodule_id=new_id)
    votes = [{str(key): value for key, value in vote.items()} for vote in own.to_dict("records")]
    causes = {name: changed} if name in BIOMARKERS and changed.any() else None
    writer.write(crop, row, votes, causes)
