"""Splits and downloads must not wait for torch or MONAI."""

import subprocess
import sys


def test_splits_and_downloads_import_no_torch():
    code = (
        "import sys; from lidc_xai.data import download, load_splits, make_splits, window_statistics\n"
        "print([name for name in ('torch', 'monai', 'idc_index') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
