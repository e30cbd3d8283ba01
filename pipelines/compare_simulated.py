"""Real and simulated chest CT side by side, in pictures and in numbers.

python pipelines/compare_simulated.py --dicom LIDC-IDRI/LIDC-IDRI-0001 --out runs/compare
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from pydantic import Field
from studies.appearance import LIMITS, appearance, outside_limits

from lidc_xai.annotations import load_nodules
from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import DataError
from lidc_xai.files import write_json
from lidc_xai.imaging import CTVolume, read_ct
from lidc_xai.run import Run
from lidc_xai.simulate import simulate_ct

WINDOWS = {"lung": (-1350, 150), "soft tissue": (-160, 240)}


class Options(Config):
    """The real series."""

    dicom: Path = Field(description="Folder with one real LIDC-IDRI series.")


def compare(options: Options, run: Run) -> None:
    """Simulate the annotated nodules of a real series and compare the two: comparison.png and comparison.json."""
    out, real = need_out(options), read_ct(options.dicom)
    nodules = [nodule for nodule in load_nodules() if nodule.series_uid == real.series_uid]
    if not nodules:
        raise DataError(f"{options.dicom}: no nodule of the annotation database belongs to series {real.series_uid}")
    simulated = simulate_ct(nodules, options.seed).volume
    simulated_looks, wanted = appearance(simulated), appearance(real)
    wrong = outside_limits(simulated_looks, wanted)
    _draw(real, simulated, nodules[0].centroid_z_mm, out / "comparison.png")
    values = {"real": asdict(wanted), "simulated": asdict(simulated_looks), "limits": LIMITS, "outside_limits": wrong}
    write_json(out / "comparison.json", values)
    for name, value in asdict(wanted).items():
        print(f"{name:14s} real {value:9.3f}   simulated {getattr(simulated_looks, name):9.3f}")
    print("\n".join(wrong) or "all within limits")


def _draw(real: CTVolume, simulated: CTVolume, z_mm: float, path: Path) -> None:
    figure, axes = plt.subplots(2, 2, figsize=(12, 12), facecolor="black")
    for row, (ct, title) in zip(axes, ((real, f"{real.patient_id}, real"), (simulated, "SIMULATED")), strict=True):
        image = ct.stored[np.abs(ct.slice_z_mm - z_mm).argmin()]
        for axis, (name, (low, high)) in zip(row, WINDOWS.items(), strict=True):
            axis.imshow(image, cmap="gray", vmin=low, vmax=high)
            axis.set_title(f"{title}: {name} window", color="white")
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("compare_simulated", Options, compare, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
