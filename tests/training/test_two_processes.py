"""Two processes (gloo, CPU) take the same steps as one."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.training import FitOptions, fit

SCRIPT = """
import sys
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.training import FitOptions, fit
fit(CropStore(sys.argv[1]), sys.argv[2], options=FitOptions.model_validate_json(sys.argv[3]))
"""


def test_two_processes_end_where_one_does(
    toy_store: CropStore, quick: Callable[..., FitOptions], tmp_path: Path
) -> None:
    one = fit(toy_store, tmp_path / "one", options=quick(outputs=("malignancy", "texture")))
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    options = quick(outputs=("malignancy", "texture"), devices=2).model_dump_json()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(toy_store.path), str(tmp_path / "two"), options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((tmp_path / "two" / "fit.json").read_text())
    assert two["complete"]
    assert one.best_epoch == two["best_epoch"]
    for name, value in one.validation.items():
        assert np.isclose(value, two["validation"][name], atol=1e-4), name
    assert np.allclose(one.history["train_loss"], [row["train_loss"] for row in two["history"]], atol=1e-3)
