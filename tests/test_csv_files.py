"""Every CSV: a cell that a spreadsheet would run is text, numbers and everything else stay as they are."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lidc_xai
from lidc_xai.csv_files import csv_text, defused, read_table, rows_text, write_csv
from lidc_xai.errors import DataError
from lidc_xai.skipped import Skipped, write_skipped

EVIL = '=HYPERLINK("http://x";"y")'


@pytest.mark.parametrize("text", [EVIL, "+1+1", "-cmd|' /C calc'!A0", "@SUM(A1)", "\t=1", "\r=1", "-", "="])
def test_a_formula_becomes_text(text):
    assert defused(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-1000", "+3.5", "-1e-9", "-inf", "", "a=b", "LIDC-IDRI-0001", -3, -0.5, None, True])
def test_numbers_and_plain_words_stay(value):
    assert defused(value) is value


def test_a_table_keeps_its_numbers_to_the_last_bit(tmp_path):
    values = np.random.default_rng(0).normal(size=20)
    table = pd.DataFrame(
        {
            "patient_id": [EVIL] * 20,
            "kind": pd.Categorical(["@x"] * 20),
            "value": -np.abs(values),
            "count": pd.array([-1, None] * 10, dtype="Int64"),
        }
    )
    write_csv(tmp_path / "t.csv", table)
    back = pd.read_csv(tmp_path / "t.csv", float_precision="round_trip")
    assert set(back["patient_id"]) == {f"'{EVIL}"}
    assert set(back["kind"]) == {"'@x"}
    np.testing.assert_array_equal(back["value"], table["value"])
    assert back["count"].tolist()[0] == -1
    assert table["patient_id"].iloc[0] == EVIL, "the caller's table is left alone"


def test_a_safe_table_is_what_pandas_writes():
    table = pd.DataFrame({"a": ["x", None, "y, z"], "b": [1.5, np.nan, -2.0], "c": [True, False, True]})
    assert csv_text(table) == table.to_csv(index=False, lineterminator="\n")
    assert csv_text(table, index=True) == table.to_csv(lineterminator="\n")


def test_headers_index_and_rows_without_a_table():
    table = pd.DataFrame({"=a": [1]}, index=["=b"])
    assert csv_text(table, index=True) == ",'=a\n'=b,1\n"
    assert list(csv.reader(io.StringIO(rows_text([("n", "reason"), (1, EVIL)])))) == [
        ["n", "reason"],
        ["1", f"'{EVIL}"],
    ]


def test_skipped_rows_are_defused(tmp_path):
    assert f"'{EVIL}" in next(csv.DictReader(write_skipped(tmp_path, [Skipped(EVIL, "x", "y")]).open()))["nodule_id"]


def test_nothing_writes_csv_any_other_way():
    package = Path(lidc_xai.__file__).parent
    places = [*package.rglob("*.py"), *(package.parent / "pipelines").rglob("*.py")]
    other = [
        path.name for path in places if re.search(r"\.to_csv\(|csv\.(writer|DictWriter)\(", path.read_text("utf-8"))
    ]
    assert other == ["csv_files.py"]


def test_a_table_is_read_back_as_it_was_meant(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("nodule_id,patient_id,value,words\na,0012,1.5,x\nb,0013,,y\n")
    table = read_table(path, ("nodule_id",), lambda name: name == "value")
    assert table["patient_id"].tolist() == ["0012", "0013"]
    for text, words in (
        ("nodule_id,value\na,1\na,2\n", "nodule 'a' is there twice"),
        ("nodule_id,value\na,1.5x\n", "column 'value' has '1.5x', which is no finite number"),
        ("nodule_id,value\na,inf\n", "column 'value' has 'inf', which is no finite number"),
        ("nodule_id,value\n,1\n", "row 1 has no nodule_id"),
        ("id,value\na,1\n", "has no column 'nodule_id'"),
        ("", "cannot be read as CSV"),
        ('"', "cannot be read as CSV"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=re.escape(words)):
            read_table(path, ("nodule_id",), lambda name: name == "value")
