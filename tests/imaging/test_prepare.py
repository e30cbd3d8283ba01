"""From a DICOM folder to a store: every nodule is a crop or a row with a reason, after a kill as without one."""

import multiprocessing
import os
import shutil
import signal

import numpy as np
import pydicom
import pytest

from lidc_xai.annotations.write_xml import write_reader_xml
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging import CropStore, crop_nodule, prepare_dicom, read_ct
from lidc_xai.skipped import Skipped, read_skipped

THREE = ("LIDC-IDRI-0007-s1-n0", "LIDC-IDRI-0003-s1-n1", "LIDC-IDRI-0013-s1-n0")


def contents(store):
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def scans(by_id, nodule_series, tmp_path_factory):
    """Three short series of real nodules; other nodules of these scans are cut off there."""
    folder = tmp_path_factory.mktemp("scans")
    for name in THREE:
        nodule_series(folder / name, by_id[name], margin_mm=8)
    return folder


@pytest.fixture(scope="module")
def prepared(scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "store"
    return prepare_dicom(scans, out), CropStore(out)


def test_every_nodule_is_written_or_has_a_reason(prepared, scans, nodules, by_id):
    result, store = prepared
    found = {by_id[name].series_uid for name in THREE}
    expected = {nodule.nodule_id for nodule in nodules if nodule.series_uid in found}
    skipped = {row.nodule_id for row in result.skipped}
    assert set(THREE) <= set(store.nodule_ids)
    assert skipped | set(store.nodule_ids) == expected
    assert not skipped & set(store.nodule_ids)
    assert read_skipped(store.path) == result.skipped
    assert all(row.stage == "crop" and "nodule is cut off" in row.reason for row in result.skipped)
    assert result.written == store.nodule_ids
    assert store.fingerprint["counts"]["skipped"] == len(skipped)
    ct = read_ct(scans / THREE[0])
    crop = crop_nodule(ct, by_id[THREE[0]])
    stored = store.load(THREE[0])
    np.testing.assert_array_equal(stored.ct, crop.ct)
    np.testing.assert_array_equal(stored.reader_masks, crop.reader_masks)
    assert set(result.seconds) == {"read", "resample", "write"}


def test_the_same_again_changes_nothing(prepared, scans):
    _, store = prepared
    before = contents(store.path)
    again = prepare_dicom(scans, store.path)
    assert again.written == []
    assert sorted(again.kept) == store.nodule_ids
    assert contents(store.path) == before


def test_two_workers_make_the_same_store(prepared, scans, tmp_path):
    prepare_dicom(scans, tmp_path / "store", jobs=2)
    assert contents(tmp_path / "store") == contents(prepared[1].path)


def test_a_dask_cluster_makes_the_same_store(prepared, scans, tmp_path):
    """A scheduler with two workers, in threads of this process for speed; across processes see docs/imaging.md."""
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(protocol="tcp", **options) as cluster:
        assert cluster.scheduler_address.startswith("tcp://")
        prepare_dicom(scans, tmp_path / "store", cluster=cluster.scheduler_address)
    assert contents(tmp_path / "store") == contents(prepared[1].path)


def test_no_scheduler_is_one_clear_line(scans, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr("lidc_xai.imaging.prepare._CONNECT_S", 0.5)
    with pytest.raises(UsageError, match="no Dask scheduler answers there"):
        prepare_dicom(scans, tmp_path / "store", cluster="tcp://127.0.0.1:9")


@pytest.mark.parametrize("moment", [1, 2, 5, "manifest", "finish"])
def test_kill_9_at_any_moment(moment, prepared, scans, tmp_path):
    """Killed while writing its n-th file, before the manifest or before the fingerprint: the next run completes it."""
    out = tmp_path / "store"
    worker = multiprocessing.get_context("fork").Process(target=_killed_run, args=(scans, out, moment))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    for folder in (out / "crops").iterdir():
        whole = {path.name for path in folder.iterdir()} >= {"ct.nii.gz", "nodule.json"}
        assert whole or folder.name.startswith(".tmp-")
    with pytest.raises(DataError, match="unfinished"):
        CropStore(out)
    prepare_dicom(scans, out)
    assert contents(out) == contents(prepared[1].path)


def _killed_run(scans, out, moment):
    from lidc_xai.imaging.store import crop_files as store_files
    from lidc_xai.imaging.store import crop_store as store

    original, calls = store_files.write_nifti, []

    def write_nifti(path, *rest):
        calls.append(path)
        original(path, *rest)
        if len(calls) == moment:
            path.write_bytes(path.read_bytes()[:100])
            os.kill(os.getpid(), signal.SIGKILL)

    def die(*_args, **_options):
        os.kill(os.getpid(), signal.SIGKILL)

    store_files.write_nifti = write_nifti
    if moment == "manifest":
        store._manifest = die
    elif moment == "finish":
        store.describe_store = die
    prepare_dicom(scans, out)


def test_a_cohort_takes_its_own_nodules_and_names_the_absent(scans, tmp_path, by_id):
    from lidc_xai.annotations import select_cohort

    result = prepare_dicom(scans, tmp_path / "store", cohort="all862")
    cohort = list(select_cohort("all862")["nodule_id"])
    store = CropStore(tmp_path / "store")
    assert set(store.nodule_ids) <= set(cohort)
    assert {row.nodule_id for row in result.skipped} | set(store.nodule_ids) == set(cohort)
    absent = [row for row in result.skipped if row.stage == "absent"]
    assert len(absent) > 800
    assert absent[0].reason.startswith("its series is not among the 3 CT series of")
    with pytest.raises(UsageError, match="cohort 'paper' is unknown"):
        prepare_dicom(scans, tmp_path / "other", cohort="paper")
    assert not (tmp_path / "other").exists()


def test_reader_xml_beside_a_series_that_the_database_does_not_have(by_id, scans, tmp_path):
    nodule = by_id[THREE[0]]
    folder = shutil.copytree(scans / THREE[0], tmp_path / "dicom" / "one")
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = "1.2.826.1"
        dataset.save_as(path)
    result = prepare_dicom(tmp_path / "dicom", tmp_path / "none")
    reason = "CT series is not in the annotation database and no reader XML of it lies beside its files"
    assert result.skipped == [Skipped("1.2.826.1", "match", reason)]
    from dataclasses import replace

    write_reader_xml(folder / "readers.xml", [replace(nodule, series_uid="1.2.826.1")])
    result = prepare_dicom(tmp_path / "dicom", tmp_path / "store")
    assert result.skipped == []
    store = CropStore(tmp_path / "store")
    assert store.nodule_ids == ["LIDC-IDRI-0007-s2-n0"], "a second scan of a patient that the database knows"
    original = crop_nodule(read_ct(scans / THREE[0]), nodule)
    np.testing.assert_array_equal(store.load(store.nodule_ids[0]).consensus, original.consensus)
    (folder / "readers.xml").write_text("<LidcReadMessage> 1.2.826.1")
    result = prepare_dicom(tmp_path / "dicom", tmp_path / "damaged")
    assert [(row.nodule_id, row.stage) for row in result.skipped] == [("1.2.826.1", "annotations")]
    assert "damaged XML" in result.skipped[0].reason


def test_a_scan_that_cannot_be_read_is_a_row_per_nodule(scans, by_id, nodules, tmp_path):
    folder = shutil.copytree(scans, tmp_path / "dicom")
    for number, path in enumerate(sorted((folder / THREE[0]).iterdir())):
        dataset = pydicom.dcmread(path)
        dataset.PixelSpacing = [0.5 + 0.01 * number] * 2
        dataset.save_as(path)
    for path in (folder / THREE[1]).iterdir():
        path.write_bytes(b"")
    result = prepare_dicom(folder, tmp_path / "store")
    of_series = {n.nodule_id for n in nodules if n.series_uid == by_id[THREE[0]].series_uid}
    read = {row.nodule_id: row.reason for row in result.skipped if row.stage == "read"}
    assert of_series <= set(read)
    assert "differ in pixel spacing" in read[THREE[0]]
    assert "is not DICOM or its head is damaged" in read[THREE[1]], "a folder where no series is left has a row too"
    assert THREE[2] in CropStore(tmp_path / "store").nodule_ids


def test_issues_and_the_simulated_mark_reach_the_manifest(scans, prepared, tmp_path):
    folder = shutil.copytree(scans / THREE[0], tmp_path / "dicom")
    first = sorted(folder.iterdir())[0]
    marked = pydicom.dcmread(first)
    marked.ImageComments = "SIMULATED CT, not a patient"
    marked.save_as(first)
    shutil.copy(first, folder / "copy.dcm")
    prepare_dicom(folder, tmp_path / "store")
    row = CropStore(tmp_path / "store").row(THREE[0])
    assert "1 file(s) present twice" in row["issues"]
    assert row["simulated"]
    assert row["cohorts"] == ""
    real = prepared[1].row(THREE[0])
    assert not real["simulated"]
    assert "all862" in real["cohorts"].split()


def test_wrong_usage(scans, tmp_path, write_series):
    with pytest.raises(UsageError, match="no such file or folder"):
        prepare_dicom(tmp_path / "nowhere", tmp_path / "store")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no DICOM file"):
        prepare_dicom(tmp_path / "empty", tmp_path / "store")
    with pytest.raises(UsageError, match="jobs = 0"):
        prepare_dicom(scans, tmp_path / "store", jobs=0)
    with pytest.raises(UsageError, match="choose one of linear, bspline"):
        prepare_dicom(scans, tmp_path / "store", interpolation="nearest")
    write_series(change=lambda dataset, k: setattr(dataset, "Modality", "DX"))
    with pytest.raises(DataError, match=r"has no CT series \(found 1 DX\)"):
        prepare_dicom(tmp_path / "ct", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_the_real_folder(shared, tmp_path):
    result = prepare_dicom(shared / "lidc" / "dicom", tmp_path / "store")
    store = CropStore(tmp_path / "store")
    assert store.nodule_ids == ["LIDC-IDRI-0001-s1-n0"]
    assert store.load("LIDC-IDRI-0001-s1-n0").reader_masks.any(axis=(1, 2, 3)).tolist() == [True] * 4
    assert [(row.nodule_id, row.stage) for row in result.skipped] == [("LIDC-IDRI-0002-s1-n0", "crop")]
    assert "nodule is cut off" in result.skipped[0].reason
