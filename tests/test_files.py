"""Atomic writes: a reader finds the whole file or none; what a killed run left is removed."""

import json

import pytest

from lidc_xai.errors import LidcXaiError
from lidc_xai.files import atomic_path, remove_half_written, write_json
from lidc_xai.skipped import Skipped, read_skipped, write_skipped


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        write_half()
    assert json.loads(path.read_text()) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["value.json"]


def test_a_folder_is_replaced_whole(tmp_path):
    for value in ("old", "new"):
        with atomic_path(tmp_path / "crop") as temporary:
            temporary.mkdir()
            (temporary / value).write_text(value)
    assert [item.name for item in (tmp_path / "crop").iterdir()] == ["new"]


def test_left_overs_are_removed(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".tmp-1-x.json").write_text("half")
    (tmp_path / ".tmp-2-crop").mkdir()
    (tmp_path / "kept.json").write_text("{}")
    assert remove_half_written(tmp_path) == 2
    assert sorted(item.name for item in tmp_path.rglob("*")) == ["a", "kept.json"]


def test_nan_is_not_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"auc": float("nan")})


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LidcXaiError, match="cannot be written") as caught:
        write_json(tmp_path / "file" / "x.json", {})
    assert "\n" not in str(caught.value)


def test_skipped_rows_survive_a_round_trip(tmp_path):
    rows = [Skipped("b", "crop", 'a reason, with "quotes"'), Skipped("a", "read", "ends here")]
    write_skipped(tmp_path, [*rows, rows[0]])
    assert read_skipped(tmp_path) == sorted(rows)
    assert read_skipped(tmp_path / "nowhere") == []
