"""A small part of ``benchmarks/kill_and_resume.py``: prepare is killed twice; its store is that of a peaceful run."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_prepare_killed_twice(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_and_resume.py"), "--only", "prepare", "--kills", "2"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads((tmp_path / "kills.json").read_text())
    assert (row["verb"], row["kills"], row["differing"]) == ("prepare", 2, [])
    assert row["files"] > 8
