"""One run at a time in a folder; a killed one leaves a sign and keeps nobody out."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lidc_xai.errors import UsageError
from lidc_xai.files import atomic_path, remove_half_written
from lidc_xai.lock import lock_folder, unlock_folders

HOLD = """
import sys, time
from lidc_xai.files import atomic_path
from lidc_xai.lock import lock_folder
lock_folder(sys.argv[1])
with atomic_path(sys.argv[1] + "/value.json") as temporary:
    temporary.write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder and is in the middle of a write."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "held"
    yield process
    process.kill()
    process.wait()


@pytest.fixture(autouse=True)
def freed():
    yield
    unlock_folders()


def test_a_second_process_is_refused_and_the_first_keeps_its_temporary_files(other, tmp_path):
    with pytest.raises(
        UsageError, match=rf"another lidc-xai run writes there \(process {other.pid} on .*another --out"
    ):
        lock_folder(tmp_path)
    assert remove_half_written(tmp_path) == 0
    assert len(list(tmp_path.glob(".tmp-*"))) == 1


def test_a_killed_process_leaves_a_sign_and_no_lock(other, tmp_path):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert lock_folder(tmp_path) is True
    assert remove_half_written(tmp_path) == 1
    unlock_folders()
    assert list(tmp_path.iterdir()) == []
    assert lock_folder(tmp_path) is False


def test_the_same_process_may_lock_again(tmp_path):
    assert lock_folder(tmp_path) is False
    assert lock_folder(tmp_path) is False
    unlock_folders()
    assert not (tmp_path / ".lock").exists()


def test_later_processes_of_one_training_take_no_lock(other, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert lock_folder(tmp_path) is False


def test_what_another_host_left_goes_after_an_hour(tmp_path):
    fresh, old = (tmp_path / f".tmp-0123abcd-1-{letter * 8}-x.json" for letter in "ab")
    for path in (fresh, old):
        path.write_text("half")
    os.utime(old, (0, time.time() - 7200))
    assert remove_half_written(tmp_path) == 1
    assert fresh.exists()


def test_a_long_name_has_a_temporary_one(tmp_path):
    with atomic_path(tmp_path / f"{'n' * 240}.nii.gz") as temporary:
        assert temporary.name.endswith("n.nii.gz")
        temporary.write_text("x")
    assert len(list(tmp_path.iterdir())) == 1
