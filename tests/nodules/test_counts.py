"""What a report of one nodule costs: one reading of its crop, one cut of each plane, one hash of the weights."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lidc_xai.imaging import NoduleCrop, StoreWriter, planes
from lidc_xai.imaging.store import crop_store
from lidc_xai.models import build_model
from lidc_xai.nodules import explained, maps
from lidc_xai.nodules._predict import predict
from lidc_xai.reporting import nodule_report


def test_a_report_reads_its_crop_cuts_each_plane_and_hashes_the_weights_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0)
    readers = np.zeros((3, 16, 16, 16), bool)
    readers[:, 5:11, 5:11, 5:11] = True
    readers[1, 4] = readers[0, 4]
    crop = NoduleCrop(noise.normal(-600, 200, (16, 16, 16)).astype(np.float32), np.eye(4), readers, readers[0])
    crop.nodule_id = "P-1-s1-n0"
    writer = StoreWriter(tmp_path / "store", size_mm=16, spacing_mm=1.0, rule="test")
    writer.write(crop, {"patient_id": "P-1", "diameter": 6.0, "simulated": True}, [])
    store, model = writer.finish(), build_model("vit_small64_p8", ["malignancy", "margin"], size=16, seed=0)
    counts: Counter[str] = Counter()
    cuts: Counter[tuple] = Counter()
    read, cut, digest = crop_store.read_crop_files, planes.extract_plane, explained.weights_digest

    def reading(folder: Path, voxels: int) -> NoduleCrop:
        counts["read"] += 1
        return read(folder, voxels)

    def cutting(array: np.ndarray, affine: np.ndarray, view: str, index: int | None = None) -> planes.Plane:
        cuts[(array.ctypes.data, view, index)] += 1
        return cut(array, affine, view, index)

    def hashing(network: object) -> str:
        counts["hashed"] += 1
        return digest(network)

    monkeypatch.setattr(crop_store, "read_crop_files", reading)
    monkeypatch.setattr(planes, "extract_plane", cutting)
    for room in (explained, maps):
        monkeypatch.setattr(room, "weights_digest", hashing)
    table = predict(model, store)
    found = explained.explain_out_of_fold(
        [model], store, tmp_path / "out", store.nodule_ids, ["cdam", "attention"], curves=["malignancy"]
    )
    nodule_report(
        store, store.nodule_ids[0], tmp_path / "out", pdf=False, predictions=table, maps=found.maps, curves=found.curves
    )
    assert counts == {"read": 1, "hashed": 1}
    assert len(cuts) == 3 * (1 + 1 + 3)  # three views of the CT, the consensus and three readers
    assert set(cuts.values()) == {1}


def test_what_a_store_keeps_cannot_be_changed_and_a_crop_put_together_anew_is_cut_anew(tmp_path: Path) -> None:
    crop = NoduleCrop(np.zeros((8, 8, 8), np.float32), np.eye(4), nodule_id="P-1-s1-n0")
    assert planes.planes_of(crop, ("axial",)).max() == 0
    crop.ct = np.arange(1, 513, dtype=np.float32).reshape(8, 8, 8)
    assert planes.planes_of(crop, ("axial",)).min() == 257
    writer = StoreWriter(tmp_path / "store", size_mm=8, spacing_mm=1.0, rule="test")
    writer.write(crop, {"patient_id": "P-1"}, [])
    store = writer.finish()
    first = store.load("P-1-s1-n0")
    with pytest.raises(ValueError, match="read-only"):
        first.ct[0] = 3
    first.consensus = np.ones((8, 8, 8), bool)
    assert store.load("P-1-s1-n0").consensus is None
