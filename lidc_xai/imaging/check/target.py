"""What ``check_ct`` looks at: one place in a CT, or why it cannot be shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lidc_xai.annotations.nodule import Nodule
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop


@dataclass
class Target:
    """One thing to look at: where (LPS mm, if it can be said), the crop around it, or why there is none.

    ``surroundings``: a wider crop around the same centre, to see the box in.
    """

    name: str
    centre_mm: NDArray[np.float64] | None = None
    crop: NoduleCrop | None = None
    surroundings: NoduleCrop | None = None
    problem: str = ""
    nodule: Nodule | None = None
