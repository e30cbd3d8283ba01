"""Damaged inputs of every kind: read, or refused in one line, in time and without memory that the file cannot hold.

The same seeds every time; ``python benchmarks/fuzz.py --cases 1000`` runs more of them.
"""

import json

import fuzz

UNHARMED = ("prepare", "seg", "dicom")
"""Kinds of which few cases may all be read, the damage lying where nothing is looked for."""


def test_no_kind_of_damage_does_more_than_refuse_one_input(tmp_path, capsys):
    assert fuzz.main(["--cases", "12", "--out", str(tmp_path)]) == 0, capsys.readouterr()
    table = json.loads((tmp_path / "run.json").read_text())["results"]
    assert len(table) >= 21
    for kind, row in table.items():
        assert row["failed"] == []
        assert row["read"] + row["refused"] == row["cases"] > 0
        assert row["refused"] > 0 or kind in UNHARMED, "the damage does nothing"


def test_the_watch_sees_what_it_watches_for(tmp_path):
    import numpy as np
    from fuzzing.watch import Kind, run

    from lidc_xai.errors import DataError

    def read(folder):
        what = (folder / "what").read_text()
        if what == "refuse":
            raise DataError("refused")
        if what == "foreign":
            raise KeyError("x")
        if what == "hang":
            while True:
                pass
        if what == "reserve":
            np.empty(2**28, np.uint8)
        if what == "die":
            import os

            os.abort()

    ways = ["fine", "refuse", "foreign", "hang", "reserve", "die", "fine"]

    def damage(folder, rng):
        number = int((tmp_path / "count").read_text()) if (tmp_path / "count").exists() else 0
        (tmp_path / "count").write_text(str(number + 1))
        (folder / "what").write_text(ways[number])
        return ways[number]

    found = run(
        Kind(lambda folder: (folder / "what").write_text("fine"), damage, read), len(ways), 0, seconds=0.5, mib=128
    )
    assert (found.read, found.refused) == (2, 1)
    assert [number for number, _ in found.failed] == [2, 3, 4, 5]
    reasons = [words for _, words in found.failed]
    assert reasons[0].startswith("KeyError")
    assert reasons[1].startswith("takes more than")
    assert reasons[2].startswith("reserves")
    assert reasons[3] == "the process ended (SIGABRT)"
