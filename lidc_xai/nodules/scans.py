"""The same nodule as another scan would have shown it: HU that are 20 off, another reconstruction kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from lidc_xai.imaging.crops.nodule_crop import NoduleCrop

SHIFT_HU = 20.0
KERNEL_MM = 0.7
"""Sigma of the blur in the plane that a smoother kernel adds, and that a sharper one takes the difference to."""


def other_scans(crop: NoduleCrop) -> dict[str, NoduleCrop]:
    """window_up_20hu and window_down_20hu: read through a window that lies 20 HU higher or lower; kernel_smooth:
    G ∗ ct, and kernel_sharp: 2 ct − G ∗ ct, with G a Gaussian of σ = 0.7 mm in every axial slice.

    >>> scans = other_scans(crop)
    >>> float((crop.ct - scans["window_up_20hu"].ct).mean().round(3)), sorted(scans)[:2]
    (20.0, ['kernel_sharp', 'kernel_smooth'])
    """
    from scipy.ndimage import gaussian_filter

    _, y, x = crop.spacing_mm
    smooth = gaussian_filter(crop.ct, (0, KERNEL_MM / y, KERNEL_MM / x), mode="nearest").astype(np.float32)
    volumes = {
        f"window_up_{SHIFT_HU:.0f}hu": crop.ct - np.float32(SHIFT_HU),
        f"window_down_{SHIFT_HU:.0f}hu": crop.ct + np.float32(SHIFT_HU),
        "kernel_sharp": 2 * crop.ct - smooth,
        "kernel_smooth": smooth,
    }
    return {name: replace(crop, ct=ct) for name, ct in volumes.items()}
