"""What a network reads of a crop: refused where the model learned from another box or spacing."""

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize(("given", "slices", "read"), [(5, 1, [2]), (7, 3, [2, 3, 4]), (6, 1, [3]), (3, 3, [0, 1, 2])])
def test_the_slices_around_the_middle_are_read(given: int, slices: int, read: list[int]) -> None:
    planes = torch.arange(given, dtype=torch.float32).view(1, given, 1, 1).expand(2, given, 4, 4)  # (views, slices, …)
    alone = Preprocess(slices=slices).inputs(planes)
    assert alone[:, 0, 0].tolist() == read * 2
    if given >= slices + 2:
        beside = Preprocess(slices=slices, channels="neighbours").inputs(planes)
        assert beside[:, :, 0, 0].tolist() == [[k - 1, k, k + 1] for k in read] * 2


def test_hu_of_an_input_are_those_of_its_middle_plane() -> None:
    planes = torch.stack([torch.full((8, 8), hu) for hu in (-900.0, -50.0, 30.0)])
    reads = Preprocess(size=8, channels="neighbours")
    assert torch.allclose(reads.to_hu(reads.apply(planes)), planes[1], atol=1e-3)
    reads = Preprocess(size=8)
    assert torch.allclose(reads.to_hu(reads.apply(planes)), planes, atol=1e-3)
