"""Causes by intervention: ``edit_nodule`` changes one property of a real nodule by a dose and leaves the rest;
``edit_store`` does so with the nodules of a store, which are marked as edited wherever they go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.store.crop_store import CropStore, StoreWriter
from lidc_xai.progress import track
from lidc_xai.ratings import BIOMARKERS
from lidc_xai.simulate.edits import densities, warps
from lidc_xai.simulate.edits.site import Site, site_of, touches_box
from lidc_xai.simulate.grid import Floats, stream

CHANGED = 3.0
"""A voxel counts as edited where it changed by more than so many times the local noise."""
SHAM = 0.05
"""A sham edit warps the nodule by this share of its diameter, and back."""
Change = Callable[[Site, float, np.random.Generator], Floats]
MARK = "-EDITED-"
"""Stands in the id of every edited nodule, and so in the names of its maps, pages and exports."""


@dataclass(frozen=True)
class Edit:
    """One edit: what it does, whether it moves the rim (``change`` then gives a displacement, else HU), its lowest
    dose, and the sign with which the output of its own name should follow a rising dose (0: it has no such output)."""

    change: Change
    moves: bool = False
    lowest: float = 0.0
    sign: int = 1


EDITS: dict[str, Edit] = {
    "remove": Edit(densities.remove, sign=0),
    "diameter": Edit(warps.diameter, moves=True, lowest=-1.0),
    "calcification": Edit(densities.calcification, sign=-1),  # of the code, 6 = absent: P(any calcification) rises
    "margin": Edit(densities.margin, lowest=-1.0, sign=-1),
    "spiculation": Edit(densities.spiculation),
    "lobulation": Edit(warps.lobulation, moves=True),
    "texture": Edit(densities.texture, sign=-1),
    "sphericity": Edit(warps.sphericity, moves=True, sign=-1),
    "subtlety": Edit(densities.subtlety, sign=-1),
}


def edit_nodule(crop: NoduleCrop, name: str, dose: float = 1.0, seed: int = 0) -> tuple[NoduleCrop, NDArray[np.bool_]]:
    """An edited copy of a crop with readers' masks, and the (z, y, x) bool voxels that the edit changed.

    ``name``: remove, diameter, calcification, margin, spiculation, lobulation, texture, sphericity or subtlety.
    ``dose``: 0 leaves the crop as it is, 1 is the far end of the edit, linear between; ``diameter`` (smaller) and
    ``margin`` (sharper) go down to -1; ``remove`` takes 0 or 1. All random draws depend on ``seed`` and the nodule
    alone, so that the doses of one nodule are nested. Edited voxels are those that changed by more than three times the
    local noise (the robust SD of the lung in the box). Masks move with the edits that move the rim; after ``remove``
    they show where the nodule was. ``crop`` is not changed.

    Raises ``UsageError`` for an unknown name or a dose out of range; ``DataError`` for a crop without outlines, a
    nodule that is larger than the box (before or after the edit), touches the padding beside it or has fewer than 15
    voxels, and for an edit that changes nothing.

    >>> edited, changed = edit_nodule(crop, "diameter", dose=1.0)
    >>> bool(edited.consensus.sum() > crop.consensus.sum()), bool(changed.any())
    (True, True)
    """
    edit = check_dose(name, dose)
    site = site_of(crop)
    note = f"EDITED: {name}, dose {dose:g}, seed {seed}"
    if dose == 0:
        return replace(crop, ct=crop.ct.copy(), issues=[*crop.issues, note]), np.zeros(crop.ct.shape, bool)
    result = edit.change(site, dose, stream(seed, crop.nodule_id, name))
    new = _warped(crop, site, result) if edit.moves else replace(crop, ct=_placed(crop.ct, site, result))
    changed = np.abs(new.ct.astype(np.float64) - crop.ct) > CHANGED * site.noise_hu
    who = crop.nodule_id or "crop"
    if not changed.any():
        raise DataError(f"{who}: {name} at dose {dose:g} changes nothing that stands out from the noise; leave it out")
    if edit.moves and (new.consensus is None or touches_box(new.consensus)):
        raise DataError(f"{who}: {name} at dose {dose:g} makes the nodule larger than the box; give a smaller dose")
    new.issues = [*crop.issues, note]
    return new, changed


def sham_edit(crop: NoduleCrop) -> NoduleCrop:
    """The crop after a warp that makes its nodule 5 % wider, and then the same warp backwards: the same nodule, with
    whatever traces editing leaves.

    >>> float(np.abs(sham_edit(crop).ct - crop.ct).mean()) < 5
    True
    """
    site = site_of(crop)
    there = warps.radial(site, to=1 + SHAM)
    back = warps.radial(site, to=1.0, rim=1 + SHAM)
    ct = warps.warped(site, back, warps.warped(site, there, site.ct))
    return replace(crop, ct=_placed(crop.ct, site, ct), issues=[*crop.issues, "EDITED: sham"])


def check_dose(name: str, dose: float) -> Edit:
    """The edit of that name; ``UsageError`` where there is none, or it does not take that dose."""
    if name not in EDITS:
        raise UsageError(f"edit {name!r} is not known; choose one of {', '.join(EDITS)}")
    edit = EDITS[name]
    if not (isinstance(dose, int | float) and math.isfinite(dose) and edit.lowest <= dose <= 1):
        raise UsageError(f"dose {dose} of {name}: wanted a number from {edit.lowest:g} to 1")
    if name == "remove" and dose not in (0, 1):
        raise UsageError(f"dose {dose} of remove: wanted 0 or 1")
    return edit


def _placed(whole: NDArray[np.float32], site: Site, block: Floats) -> NDArray[np.float32]:
    """The box with the block's new values; where those are the old ones, bit by bit."""
    new = whole.copy()
    new[site.block] = np.where(block == site.ct, whole[site.block], block)
    return new


def _warped(crop: NoduleCrop, site: Site, shift_mm: Floats) -> NoduleCrop:
    def mask(old: NDArray[np.bool_]) -> NDArray[np.bool_]:
        new = old.copy()
        new[site.block] = warps.warped_mask(site, shift_mm, old[site.block])
        return new

    return replace(
        crop,
        ct=_placed(crop.ct, site, warps.warped(site, shift_mm, site.ct)),
        consensus=None if crop.consensus is None else mask(crop.consensus),
        reader_masks=None if crop.reader_masks is None else np.stack([mask(one) for one in crop.reader_masks]),
    )


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
