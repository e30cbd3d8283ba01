"""The download's logic against a stand-in for IDCClient: what is asked, fetched, continued and refused."""

import builtins
import urllib.error
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lidc_xai.data import download, idc
from lidc_xai.errors import DataError, DependencyError, UsageError


class StandIn:
    """What idc-index offers: an index with sizes, and a download that writes files (or fewer, or none)."""

    def __init__(self, files: int = 3, size_mb: float = 70.0, deliver: int | None = None) -> None:
        rows = [
            ("lidc_idri", f"LIDC-IDRI-{n:04d}", f"1.{n}", f"1.{n}.{s}", modality, files, size_mb)
            for n in range(1, 5)
            for s, modality in ((1, "CT"), (2, "DX"), (3, "SEG"))
        ]
        rows.append(("nlst", "LIDC-IDRI-0001", "9", "9.9", "CT", files, size_mb))
        names = ["collection_id", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "instanceCount"]
        self.index = pd.DataFrame(rows, columns=[*names, "series_size_MB"])
        self.files, self.deliver = files, files if deliver is None else deliver
        self.asked: list[str] = []
        self.raises: Exception | None = None

    def download_from_selection(self, downloadDir: str, seriesInstanceUID: list[str], **options: Any) -> None:
        (uid,) = seriesInstanceUID
        self.asked.append(uid)
        assert options["dirTemplate"] is None
        for n in range(self.deliver):
            (Path(downloadDir) / f"{n}.dcm").write_bytes(b"slice")
        if self.raises:
            raise self.raises


def test_ct_alone_in_tcias_layout(tmp_path):
    client = StandIn()
    result = download(["LIDC-IDRI-0002", "3"], tmp_path / "out", client=client)
    assert client.asked == ["1.2.1", "1.3.1"]
    assert result.folders == [
        tmp_path / "out" / "LIDC-IDRI-0002" / "1.2" / "1.2.1",
        tmp_path / "out" / "LIDC-IDRI-0003" / "1.3" / "1.3.1",
    ]
    assert all(len(list(folder.iterdir())) == 3 for folder in result.folders)
    assert (result.fetched, result.fetched_mb) == (2, 140.0)


def test_what_is_here_is_not_fetched_again_and_a_broken_one_is(tmp_path):
    download(["1", "2"], tmp_path, client=StandIn())
    (tmp_path / "LIDC-IDRI-0002" / "1.2" / "1.2.1" / "0.dcm").unlink()
    (tmp_path / "LIDC-IDRI-0003" / "1.3").mkdir(parents=True)
    killed = tmp_path / "LIDC-IDRI-0003" / "1.3" / ".tmp-0123abcd-1.3.1"
    killed.mkdir()
    (killed / "0.dcm").write_bytes(b"half")
    client = StandIn()
    result = download(["1", "2", "3"], tmp_path, client=client)
    assert client.asked == ["1.2.1", "1.3.1"]
    assert result.fetched == 2
    assert len(result.folders) == 3
    assert all(len(list(folder.iterdir())) == 3 for folder in result.folders)
    assert not list(tmp_path.rglob(".tmp-*"))
    again = StandIn()
    assert download(["1", "2", "3"], tmp_path, client=again).fetched == 0
    assert again.asked == []


@pytest.mark.parametrize("came", [0, 2])
def test_an_incomplete_series_leaves_nothing_behind(came, tmp_path):
    client = StandIn(deliver=came)
    with pytest.raises(DataError, match=f"LIDC-IDRI-0001 series 1.1.1: {came} of 3 files came.*again"):
        download(["1"], tmp_path / "out", client=client)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not list((tmp_path / "out").rglob("1.1.1"))
    assert download(["1"], tmp_path / "out", client=StandIn()).fetched == 1


def test_a_failing_client_is_one_line(tmp_path):
    client = StandIn()
    client.raises = ValueError("no\nsuch bucket")
    with pytest.raises(DataError, match=r"1\.1\.1: download failed .no such bucket.; run the same command again"):
        download(["1"], tmp_path, client=client)


def test_asks_before_much_and_names_number_and_size(tmp_path):
    questions = []

    def answer(question: str) -> bool:
        questions.append(question)
        return len(questions) > 1

    client = StandIn(size_mb=400.0)
    with pytest.raises(UsageError, match="nothing was fetched"):
        download(["1", "2", "3"], tmp_path, client=client, ask=answer)
    assert client.asked == []
    assert "3 CT series" in questions[0]
    assert "1.2 GB" in questions[0]
    assert download(["1", "2", "3"], tmp_path, client=client, ask=answer).fetched == 3
    assert len(questions) == 2


def test_does_not_ask_for_little_nor_with_yes(tmp_path):
    def refuse(question: str) -> bool:
        raise AssertionError(question)

    assert download(["1"], tmp_path / "a", client=StandIn(size_mb=400.0), ask=refuse).fetched == 1
    assert download(["1", "2"], tmp_path / "b", client=StandIn(size_mb=400.0), ask=refuse, yes=True).fetched == 2


def test_in_a_script_nobody_can_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    with pytest.raises(UsageError, match="add --yes"):
        download(["1", "2"], tmp_path, client=StandIn(size_mb=400.0))


def test_disk_too_small(tmp_path):
    with pytest.raises(DataError, match=r"needed, .* free; choose another --out"):
        download(["1"], tmp_path / "not" / "yet", client=StandIn(size_mb=1e12), yes=True)


def test_wrong_patients(tmp_path):
    with pytest.raises(UsageError, match="'LIDC-IDRI-9999' has no CT"):
        download(["1", "9999"], tmp_path, client=StandIn())
    with pytest.raises(UsageError, match="no patient given"):
        download([], tmp_path, client=StandIn())
    for patients, cohort in ((None, None), (["1"], "paper854")):
        with pytest.raises(UsageError, match="either patients or a cohort"):
            download(patients, tmp_path, cohort=cohort, client=StandIn())


def test_a_cohort_asks_for_its_own_series(tmp_path, monkeypatch):
    from lidc_xai.annotations import select_cohort

    table = select_cohort("paper854").drop_duplicates("series_uid")
    client = StandIn(size_mb=1.0)
    client.index = pd.DataFrame(
        {
            "collection_id": "lidc_idri",
            "PatientID": table.patient_id,
            "StudyInstanceUID": table.study_uid,
            "SeriesInstanceUID": table.series_uid,
            "Modality": "CT",
            "instanceCount": 3,
            "series_size_MB": 0.5,
        }
    )
    fetched = []
    monkeypatch.setattr(idc, "_fetch", lambda client, series, folder: fetched.append(series.uid))
    result = download(None, tmp_path, cohort="paper854", client=client)
    assert set(fetched) == set(table.series_uid)
    assert result.fetched == len(fetched) == table.patient_id.nunique()
    with pytest.raises(DataError, match="not in the index of idc-index"):
        download(None, tmp_path, cohort="paper854", client=StandIn())


def test_without_idc_index(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "idc_index":
            raise ImportError("No module named 'idc_index'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r"pip install 'lidc-xai\[download\]'"):
        download(["1"], tmp_path)


def test_closed_network_is_found_before_anything_is_written(tmp_path, monkeypatch):
    client = StandIn()
    monkeypatch.setattr(idc, "_client", lambda: client)

    def closed(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", closed)
    with pytest.raises(DataError, match=r"cannot be reached .Name or service not known."):
        download(["1"], tmp_path / "out")
    assert client.asked == []
    assert not (tmp_path / "out").exists()


def test_real_index_knows_every_series_of_the_annotations():
    """The bundled index of idc-index, where it is installed: all 1018 CT series, with sizes."""
    data = pytest.importorskip("idc_index_data")
    from lidc_xai.annotations.database import database_scans

    ct = pd.read_parquet(
        data.IDC_INDEX_PARQUET_FILEPATH,
        columns=["SeriesInstanceUID", "series_size_MB", "instanceCount"],
        filters=[("collection_id", "==", "lidc_idri"), ("Modality", "==", "CT")],
    )
    assert set(ct.SeriesInstanceUID) == {scan.series_uid for scan in database_scans().values()}
    assert (ct.series_size_MB > 1).all()
    assert (ct.instanceCount > 20).all()
