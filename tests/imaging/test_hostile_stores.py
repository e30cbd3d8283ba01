"""Stores that are damaged or hostile: a crop that is not what prepare wrote is refused, alone and in one line."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging import CropStore, NoduleCrop, StoreWriter
from lidc_xai.imaging.crops.nodule_crop import check_crop
from lidc_xai.imaging.ct.formats.volume_file import read_nifti, write_nifti


def make_crop(name="one", side=16, seed=0, **changes):
    rng = np.random.default_rng(seed)
    masks = rng.random((2, side, side, side)) > 0.7
    given = {
        "ct": rng.normal(-500, 300, (side, side, side)).astype(np.float32), "affine": np.eye(4),
        "reader_masks": masks, "consensus": masks.any(axis=0), "nodule_id": name,
    } | changes  # fmt: skip
    return NoduleCrop(**given)


@pytest.fixture
def store(tmp_path):
    writer = StoreWriter(tmp_path / "store", size_mm=16, spacing_mm=1, rule={})
    for place, name in enumerate(("one", "two")):
        crop = make_crop(name, seed=place)
        writer.write(crop, {"patient_id": name}, [], {"spiculation": crop.consensus, "calcification": ~crop.consensus})
    return writer.finish()


def rewrite(store, name, change):
    path = store.path / "crops" / "one" / name
    array, affine = read_nifti(path)
    array, affine = change(array.copy(), affine.copy())
    write_nifti(path, array, affine)


def another(array, affine):
    array[3, 3, 3] += 1
    return array, affine


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("ct.nii.gz", another, "ct.nii.gz: is not what prepare wrote"),
        ("ct.nii.gz", lambda a, m: (a * np.nan, m), "ct.nii.gz: is not what prepare wrote"),
        ("ct.nii.gz", lambda a, m: (a[:4, :4, :4], m), "the store's crops have 16 a side"),
        ("ct.nii.gz", lambda a, m: (np.tile(a, (2, 2, 2)), m), "the store's crops have 16 a side"),
        ("ct.nii.gz", lambda a, m: (a, m + 5 * np.eye(4)[:, [3, 0, 1, 2]]), "lies elsewhere than nodule.json says"),
        ("readers.nii.gz", lambda a, m: (1 - a, m), "readers.nii.gz: is not what prepare wrote"),
        ("consensus.nii.gz", lambda a, m: (1 - a, m), "consensus.nii.gz: is not what prepare wrote"),
    ],
)
def test_a_changed_file_is_refused(store, file, change, words):
    rewrite(store, file, change)
    with pytest.raises(DataError, match=words) as caught:
        store.load("one")
    assert "\n" not in str(caught.value)
    good, lost = store.sound()
    assert good == ["two"]
    assert [(row.nodule_id, row.stage) for row in lost] == [("one", "store")]


def test_another_nodules_files_are_refused(store):
    one, two = (store.path / "crops" / name for name in ("one", "two"))
    shutil.copy(two / "ct.nii.gz", one / "ct.nii.gz")
    with pytest.raises(DataError, match="not what prepare wrote"):
        store.load("one")
    shutil.rmtree(one)
    shutil.copytree(two, one)
    with pytest.raises(DataError, match="is the record of nodule 'two'"):
        store.load("one")


def test_a_removed_mask_and_a_changed_cause_are_refused(store):
    rewrite(store, "cause_spiculation.nii.gz", lambda a, m: (1 - a, m))
    with pytest.raises(DataError, match=r"cause_spiculation.nii.gz: is not what prepare wrote"):
        store.causes("one")
    (store.path / "crops" / "one" / "readers.nii.gz").unlink()
    with pytest.raises(DataError, match=r"readers.nii.gz: is not what prepare wrote .damaged, replaced or missing"):
        store.load("one")


def test_a_store_of_an_earlier_version_still_opens_and_is_checked_by_its_sums(store):
    path = store.path / "crops" / "one" / "nodule.json"
    record = json.loads(path.read_text())
    del record["arrays"]
    path.write_text(json.dumps(record))
    manifest = store.path / "manifest.parquet"
    pd.read_parquet(manifest).drop(columns="padded_share").to_parquet(manifest)
    old = CropStore(store.path)
    np.testing.assert_array_equal(old.load("one").ct, make_crop("one", seed=0).ct)
    rewrite(store, "ct.nii.gz", another)
    with pytest.raises(DataError, match="not what prepare wrote"):
        old.load("one")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.pop("row"), "has no field 'row'"),
        (lambda r: r["row"].pop("issues"), "has no field 'issues'"),
        (lambda r: r.pop("hu"), "has no field 'hu'"),
        (lambda r: r.update(affine=[1, 2]), "affine is not 4 x 4"),
        (lambda r: r.update(row=None), "nodule.json"),
        (lambda r: r["row"].update(padded="yes"), "padded and larger_than_box"),
        (lambda r: r["affine"][0].__setitem__(0, 2.0), "lies elsewhere than nodule.json says"),
        (lambda r: r["affine"][0].__setitem__(3, 1e9), "lies elsewhere than nodule.json says"),
        (lambda r: r["affine"][0].__setitem__(3, float("nan")), "lies elsewhere than nodule.json says"),
        (lambda r: r["affine"][0].__setitem__(3, "../../etc/passwd"), "affine is not 4 x 4"),
        (lambda r: r["affine"][0].__setitem__(3, {"a": []}), "affine is not 4 x 4"),
        (lambda r: r["row"].update(padded_share="half"), "padded_share is no number"),
    ],
)
def test_a_changed_record_is_refused_and_written_anew(store, change, words):
    path = store.path / "crops" / "one" / "nodule.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=words):
        store.load("one")


def test_prepare_writes_a_damaged_nodule_anew_and_leaves_out_what_it_cannot(store):
    path = store.path / "crops" / "one" / "nodule.json"
    path.write_text("{")
    writer = StoreWriter(store.path, size_mm=16, spacing_mm=1, rule={})
    assert not writer.done("one")
    assert writer.done("two")
    again = writer.finish()
    assert again.nodule_ids == ["two"]
    assert "delete the folder and run prepare again" in (store.path / "skipped.csv").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop(columns="nodule_id"), "manifest.parquet has no column 'nodule_id'"),
        (lambda t: t.drop(columns="issues"), "manifest.parquet has no column 'issues'"),
        (lambda t: t.assign(nodule_id=["/etc", "two"]), "nodule id '/etc' cannot be a folder's name"),
        (lambda t: t.assign(nodule_id=["..", "two"]), "nodule id '..' cannot be a folder's name"),
        (lambda t: t.assign(nodule_id=["../../x", "two"]), "cannot be a folder's name"),
        (lambda t: t.assign(nodule_id=["n" * 250, "two"]), "has 250 bytes; at most 120"),
        (lambda t: t.assign(nodule_id=[1.5, 2.5]), "cannot be a folder's name"),
        (lambda t: t.assign(nodule_id=["two", "two"]), "has nodule 'two' twice"),
    ],
)
def test_a_changed_manifest_is_one_line_and_never_leads_out_of_the_store(store, change, words):
    path = store.path / "manifest.parquet"
    change(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(DataError, match=words) as caught:
        CropStore(store.path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "..", "../one", "a/b", "", "-x", ".x", "n" * 250, "a\nb"])
def test_an_id_that_is_no_name_reads_and_writes_nothing(store, name):
    with pytest.raises(UsageError, match="has no nodule"):
        store.load(name)
    writer = StoreWriter(store.path, size_mm=16, spacing_mm=1, rule={})
    with pytest.raises(UsageError, match=r"cannot be a folder's name|at most 120"):
        writer.write(make_crop(name), {}, [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ct": np.full((16, 16, 16), -1024, np.float32)}, "is blank: -1024 HU throughout"),
        ({"ct": np.linspace(-1024, -995, 4096).reshape(16, 16, 16)}, "nothing above -995 HU, so no tissue"),
        ({"ct": np.full((16, 16, 16), np.nan)}, "no numbers"),
        ({"ct": np.full((16, 16, 16), np.inf)}, "no numbers"),
        ({"ct": np.zeros((4, 4, 4))}, "has 4 x 4 x 4 voxels"),
        ({"ct": np.zeros((200, 200, 200))}, "200.0 x 200.0 x 200.0 mm"),
        ({"ct": np.zeros((16, 16))}, "has 16 x 16 voxels"),
        ({"consensus": np.ones((8, 8, 8), bool)}, "consensus has 8 x 8 x 8 voxels"),
        ({"affine": np.diag([1, 1, 2.0, 1])}, "cubes are wanted"),
        ({"affine": np.diag([0, 1, 1.0, 1])}, "cubes are wanted"),
        ({"affine": np.full((4, 4), np.nan)}, "finite numbers"),
        ({"affine": np.eye(3)}, "finite numbers"),
        ({"affine": np.array([[1, 0.5, 0, 0], [0, 0.866025, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])}, "right angles"),
    ],
)
def test_a_box_that_no_model_could_read_is_refused_before_it_is_written(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        check_crop(make_crop(**changes))
    writer = StoreWriter(tmp_path / "new", size_mm=16, spacing_mm=1, rule={})
    with pytest.raises(DataError, match=words):
        writer.write(make_crop(**changes), {}, [])
    assert not (tmp_path / "new" / "crops").exists()


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "x.nrrd"])
def test_an_image_cut_short_by_a_full_disk_is_an_error(tmp_path, name):
    """A limit on the size of a file stands for the full disk; ITK itself says nothing of it for NIfTI."""
    code = (
        "import resource, sys, numpy as np\n"
        "from lidc_xai.errors import LidcXaiError\n"
        "from lidc_xai.files import atomic_path\n"
        "from lidc_xai.imaging.ct.formats.volume_file import to_image, write_image\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "array = np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32)\n"
        "try:\n"
        "    with atomic_path(sys.argv[1]) as temporary:\n"
        "        write_image(to_image(array, np.eye(4)), temporary)\n"
        "except LidcXaiError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / name)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert "cannot be written" in done.stdout, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("spiculation", {}), ("centre_y_mm", "x"), ("n_readers_masked", "one")])
def test_a_record_with_a_value_of_another_kind_is_a_row(store, name, value):
    path = store.path / "crops" / "one" / "nodule.json"
    record = json.loads(path.read_text())
    record["row"][name] = value
    path.write_text(json.dumps(record))
    assert StoreWriter(store.path, size_mm=16, spacing_mm=1, rule={}).finish().nodule_ids == ["two"]
    assert "one/nodule.json" in (store.path / "skipped.csv").read_text()
