"""A small part of ``benchmarks/kill_and_resume.py``: prepare is killed twice; its store is that of a peaceful run."""

import json

import kill_and_resume


def test_prepare_killed_twice(tmp_path, capsys):
    code = kill_and_resume.main(["--only", "prepare", "--kills", "2", "--out", str(tmp_path)])
    assert code == 0, capsys.readouterr()
    (row,) = json.loads((tmp_path / "kills.json").read_text())
    assert (row["verb"], row["kills"], row["differing"]) == ("prepare", 2, [])
    assert row["files"] > 8
