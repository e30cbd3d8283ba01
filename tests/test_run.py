"""How a run ends: a record for every end, one line for a full disk, no traceback, and base names in what is shared."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys

import pytest

from lidc_xai.commands import common
from lidc_xai.run import Run, shareable_argv, shareable_config

VERB = """
import sys, time
from pathlib import Path
import typer
from lidc_xai.commands.common import VERBS, need_out, verb
from lidc_xai.config import Config
from lidc_xai.files import atomic_path

class Wait(Config):
    "Wait. Nothing else."

@verb("lidc-xai wait")
def wait(config: Wait, run):
    out = need_out(config)
    with atomic_path(out / "half") as temporary:
        temporary.write_text("half")
        print("waiting", flush=True)
        time.sleep(60)

app = typer.Typer()
for name, about, call in VERBS["__main__"]:
    app.command(name, short_help=about)(call)

@app.callback()
def root(): pass

app()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_with_a_record_and_nothing_half_written(tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-c", VERB, "wait", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts what runs in its background with the interrupt ignored, and a child inherits that
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert process.stdout.readline().strip() == "waiting"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    assert said == "lidc-xai wait: interrupted; the same command goes on from here\n"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"


FILL = VERB.replace("time.sleep(60)", "pass").replace('"half")\n        print', '"x" * 10_000)\n        print')


@pytest.mark.parametrize(("room", "left"), [(4000, ["run.json"]), (0, [])])
def test_a_full_disk_is_one_line_also_for_the_record(tmp_path, room, left):
    """A limit on the size of a file makes writes fail as on a full disk, deterministically."""
    found = subprocess.run(
        [sys.executable, "-c", FILL, "wait", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},  # or a .pyc would be cut short
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
    )
    record = "" if left else " (and no run.json: File too large)"
    said = f"{tmp_path}/half: cannot be written (File too large); free space or choose another --out{record}"
    assert found.stderr == f"lidc-xai wait: {said}\n"
    assert found.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == left


def test_a_library_on_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some.file")
    monkeypatch.setattr(Run, "write", lambda self, status: (_ for _ in ()).throw(error))
    run = Run("train", ["lidc-xai"], {}, tmp_path)
    assert common._fail(run, common._unexpected(error), 1) == 1
    assert capsys.readouterr().err == (
        "lidc-xai train: some.file: the disk is full (No space left on device); free space and run the same command "
        "again (and no run.json: No space left on device)\n"
    )


def test_the_command_is_recorded_without_its_paths():
    said = shareable_argv(
        [
            "prepare", "--ct", "/data/DOE^JOHN/1", "--points=/home/me/p.csv", "--out", "/home/me/runs/x", "--set",
            "mask=/a/b.dcm", "--set", "search.storage=postgresql://me:secret@host/db", "--method", "cdam,attention",
            "--quiet", "image/a.png",
        ]
    )  # fmt: skip
    assert said == [
        "prepare", "--ct", "<ct>", "--points=<points>", "--out", "x", "--set", "mask=<mask>", "--set",
        "search.storage=db", "--method", "cdam,attention", "--quiet", "a.png",
    ]  # fmt: skip
    assert shareable_argv(["check", "--quiet", "/data/DOE", "--point=-1,2,3"])[2:] == ["<path>", "--point=-1,2,3"]
    assert shareable_config({"ct": "/a/DOE", "fit": {"weights": "/w/x.pth"}, "jobs": 2, "dicom": None}) == {
        "ct": "<ct>",
        "fit": {"weights": "x.pth"},
        "jobs": 2,
        "dicom": None,
    }
