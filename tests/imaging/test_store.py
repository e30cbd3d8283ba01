"""The store: what goes in comes out, NIfTI lies over its CT, and nothing half-written is ever visible."""

import json

import numpy as np
import pytest
import SimpleITK as sitk

from lidc_xai.annotations import nodule_row, nodule_votes
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging import CropStore, NoduleCrop, StoreWriter
from lidc_xai.imaging.store.crop_store import MANIFEST_COLUMNS

RULE = {"interpolation": "linear"}


def make_crop(name, seed=0, readers=2):
    rng = np.random.default_rng(seed)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -101.123456789, 33.3, -7.654321
    masks = rng.random((readers, 8, 8, 8)) > 0.5 if readers else None
    return NoduleCrop(
        ct=rng.normal(-500, 300, (8, 8, 8)).astype(np.float32),
        affine=affine,
        reader_masks=masks,
        consensus=masks.mean(axis=0) >= 0.5 if readers else None,
        issues=["one thing", "another"] if readers else [],
        nodule_id=name,
        series_uid="1.2.3",
        padded=bool(readers),
    )


@pytest.fixture
def writer(tmp_path):
    return StoreWriter(tmp_path / "store", size_mm=8, spacing_mm=1, rule=RULE)


def test_round_trip(writer, by_id):
    nodule = by_id["LIDC-IDRI-0001-s1-n0"]
    crop = make_crop(nodule.nodule_id)
    causes = {"spiculation": crop.consensus, "calcification": ~crop.consensus}
    writer.write(crop, nodule_row(nodule), nodule_votes(nodule), causes)
    writer.write(make_crop("own", 1, readers=0), {"patient_id": "me"}, [])
    assert writer.done("own")
    assert not writer.done("other")
    writer.skip("gone", "crop", "a, reason")
    store = writer.finish()
    assert store.nodule_ids == ["LIDC-IDRI-0001-s1-n0", "own"]
    assert len(store) == 2
    back = store.load(nodule.nodule_id)
    np.testing.assert_array_equal(back.ct, crop.ct)
    np.testing.assert_array_equal(back.affine, crop.affine)
    np.testing.assert_array_equal(back.reader_masks, crop.reader_masks)
    np.testing.assert_array_equal(back.consensus, crop.consensus)
    assert back.ct.dtype == np.float32
    assert back.reader_masks.dtype == back.consensus.dtype == bool
    assert (back.issues, back.padded, back.series_uid) == (crop.issues, True, "1.2.3")
    assert store.load("own").reader_masks is None
    assert store.load("own").issues == []
    np.testing.assert_array_equal(store.causes(nodule.nodule_id)["spiculation"], crop.consensus)
    assert set(store.causes(nodule.nodule_id)) == {"spiculation", "calcification"}
    assert store.causes("own") == {}
    assert (store.path / "skipped.csv").read_text() == 'nodule_id,stage,reason\ngone,crop,"a, reason"\n'


def test_manifest_and_votes(writer, by_id):
    nodule = by_id["LIDC-IDRI-0001-s1-n0"]
    writer.write(make_crop(nodule.nodule_id), nodule_row(nodule), nodule_votes(nodule))
    writer.write(make_crop("own", 1, readers=0), {"patient_id": "me", "simulated": True, "hu_calibrated": False}, [])
    store = writer.finish()
    assert tuple(store.manifest.columns) == MANIFEST_COLUMNS
    row, own = store.row(nodule.nodule_id), store.row("own")
    assert (row["label"], row["n_readers"], row["n_readers_masked"]) == (1, 4, 2)
    assert list(row["annotation_ids"]) == [84, 85, 86, 87]
    assert (row["size_mm"], row["spacing_mm"], row["padded"], row["larger_than_box"]) == (8, 1, True, False)
    assert row["ct_mean_hu"] == pytest.approx(make_crop("x").ct.mean(), abs=1e-3)
    x, y, z = row[["centre_x_mm", "centre_y_mm", "centre_z_mm"]]
    np.testing.assert_allclose([x, y, z], make_crop("x").affine[:3, 3] + 3.5)
    assert (row["simulated"], row["hu_calibrated"], own["simulated"], own["hu_calibrated"]) == (
        False,
        True,
        True,
        False,
    )
    assert np.isnan(own["spiculation"])
    assert own["label"] is store.manifest["label"].dtype.na_value
    assert store.votes["reader"].tolist() == [1, 2, 3, 4]
    assert store.votes["malignancy"].tolist() == [5, 5, 5, 4]
    text = (store.path / "manifest.csv").read_text().splitlines()
    assert len(text) == 3
    assert "84 85 86 87" in text[1]


def test_fingerprint_depends_on_the_crops_alone(tmp_path, by_id):
    def make(folder, order, seed=0):
        writer = StoreWriter(tmp_path / folder, size_mm=8, spacing_mm=1, rule=RULE)
        for name in order:
            writer.write(make_crop(name, seed + ord(name)), {"patient_id": name}, [])
        return writer.finish()

    first, second, other = make("a", "abc"), make("b", "cab"), make("c", "abc", seed=1)
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint["sha256"] != other.fingerprint["sha256"]
    for name in ("manifest.parquet", "manifest.csv", "votes.csv", "fingerprint.json"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()
    values = np.concatenate([make_crop("x", ord(name)).ct.ravel() for name in "abc"]).astype(float)
    hu = first.fingerprint["hu"]
    assert (hu["mean"], hu["sd"]) == (pytest.approx(values.mean()), pytest.approx(values.std()))
    clamped = np.clip(values, -1000, 400)
    assert (hu["clamped_mean"], hu["clamped_sd"]) == (pytest.approx(clamped.mean()), pytest.approx(clamped.std()))
    assert first.fingerprint["counts"]["nodules"] == 3


def test_nifti_is_in_patient_coordinates(writer):
    crop = make_crop("one")
    writer.write(crop, {}, [])
    folder = writer.finish().path / "crops" / "one"
    image = sitk.ReadImage(str(folder / "ct.nii.gz"))
    np.testing.assert_allclose(
        image.TransformIndexToPhysicalPoint((7, 5, 2)), (crop.affine @ [7, 5, 2, 1])[:3], atol=1e-4
    )
    readers = sitk.ReadImage(str(folder / "readers.nii.gz"))
    assert readers.GetSize() == (8, 8, 8, 2)
    np.testing.assert_allclose(readers.GetOrigin()[:3], crop.affine[:3, 3], atol=1e-4)
    header = __import__("gzip").open(folder / "ct.nii.gz").read(348)
    srow_x = np.frombuffer(header[280:296], "<f4")
    np.testing.assert_allclose(srow_x, [-1, 0, 0, 101.12346], atol=1e-4, err_msg="NIfTI itself is RAS")


def test_one_reader_stays_one_reader(writer):
    crop = make_crop("one", readers=1)
    writer.write(crop, {}, [])
    np.testing.assert_array_equal(writer.finish().load("one").reader_masks, crop.reader_masks)


def test_a_failed_write_leaves_nothing(writer, monkeypatch):
    from lidc_xai.imaging.store import crop_files as store_files

    original = store_files.write_nifti

    def fail_on_consensus(path, *rest):
        if path.name.startswith("consensus"):
            raise OSError(28, "No space left on device")
        original(path, *rest)

    monkeypatch.setattr(store_files, "write_nifti", fail_on_consensus)
    with pytest.raises(Exception, match="No space left on device"):
        writer.write(make_crop("one"), {}, [])
    assert not writer.done("one")
    assert [path.name for path in writer.path.rglob("*") if path.is_file()] == ["fingerprint.json"]


def test_an_unfinished_store_says_so_and_is_continued(writer):
    writer.write(make_crop("one"), {}, [])
    (writer.path / "crops" / ".tmp-1234-two").mkdir()
    (writer.path / "crops" / ".tmp-1234-two" / "ct.nii.gz").write_bytes(b"half")
    with pytest.raises(DataError, match="unfinished; run the same prepare command again"):
        CropStore(writer.path)
    again = StoreWriter(writer.path, size_mm=8, spacing_mm=1, rule=RULE)
    assert again.done("one")
    assert not list(writer.path.rglob(".tmp-*"))
    assert len(again.finish()) == 1


@pytest.mark.parametrize("change", [{"size_mm": 48}, {"spacing_mm": 0.5}, {"rule": {"interpolation": "bspline"}}])
def test_another_rule_is_refused(writer, change):
    options = {"size_mm": 8, "spacing_mm": 1, "rule": RULE} | change
    with pytest.raises(UsageError, match=r"was made with .* choose another --out or delete it"):
        StoreWriter(writer.path, **options)


def test_what_is_no_store(tmp_path, writer):
    with pytest.raises(UsageError, match="is not a store of crops"):
        CropStore(tmp_path)
    with pytest.raises(UsageError, match="is not a store of crops"):
        CropStore(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UsageError, match="exists and is not a store"):
        StoreWriter(file, size_mm=8, spacing_mm=1, rule=RULE)
    (writer.path / "fingerprint.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        CropStore(writer.path)


def test_unknown_nodules_damaged_crops_and_bad_names(writer):
    writer.write(make_crop("one"), {}, [])
    store = writer.finish()
    with pytest.raises(UsageError, match="has no nodule 'two'"):
        store.load("two")
    with pytest.raises(UsageError, match="cannot be a folder's name"):
        writer.write(make_crop("../escape"), {}, [])
    with pytest.raises(DataError, match="not a biomarker"):
        writer.write(make_crop("two"), {}, [], {"colour": make_crop("x").consensus})
    path = store.path / "crops" / "one" / "ct.nii.gz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read as an image"):
        store.load("one")


def test_an_empty_store_opens(writer):
    store = writer.finish()
    assert len(store) == 0
    assert tuple(store.manifest.columns) == MANIFEST_COLUMNS
    assert json.loads((store.path / "fingerprint.json").read_text())["hu"] is None
