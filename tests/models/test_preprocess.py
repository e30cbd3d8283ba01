"""What a network reads of a crop: refused where the model learned from another box or spacing."""

import numpy as np
import pytest

from lidc_xai.errors import UsageError
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.models.preprocess import Preprocess


def test_a_crop_of_another_box_or_spacing_is_refused() -> None:
    """A nodule would be taken for smaller or larger than it is."""
    reads = Preprocess(box_mm=16, spacing_mm=1)
    fits = NoduleCrop(np.zeros((16, 16, 16), np.float32), np.eye(4), nodule_id="A-s1-n0")
    reads.check(fits)
    fine = NoduleCrop(np.zeros((32, 32, 32), np.float32), np.diag([0.5, 0.5, 0.5, 1]), nodule_id="A-s1-n0")
    with pytest.raises(UsageError, match=r"A-s1-n0: a box of 16 mm at 0\.5 mm; .* 16 mm at 1 mm .* --spacing-mm 1"):
        reads.check(fine)
    with pytest.raises(UsageError, match="a box of 32 mm at 1 mm"):
        reads.check(NoduleCrop(np.zeros((32, 32, 32), np.float32), np.eye(4), nodule_id="A-s1-n0"))
    Preprocess().check(fine)
    assert Preprocess.from_json(reads.to_json()) == reads
    assert "box_mm" not in Preprocess().to_json()
