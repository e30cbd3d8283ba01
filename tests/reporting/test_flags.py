"""What a page warns of, and how it tells the readers' opinion."""

import numpy as np
import pytest

from lidc_xai.reporting import nodule_report
from lidc_xai.reporting.nodule.flags import quality_flags


def test_flags():
    row = {
        "n_readers": 2, "n_readers_masked": 1, "padded": True, "larger_than_box": True, "hu_calibrated": False,
        "ambiguous": True, "malignancy_median": 3.0, "slice_thickness_mm": 5.0, "issues": "gap", "simulated": True,
    }  # fmt: skip
    readings = {"margin": {"sd": 1.3, "mean": 3, "n": 2}, "diameter": {"sd": 4.0, "mean": 9, "n": 2}}
    titles = " | ".join(flag["title"] + flag["text"] for flag in quality_flags(row, readings))
    for word in ("SIMULATED", "HU not calibrated", "Partly outside the scan", "Larger than the cube", "2 of 4",
                 "1 of 2 contours", "Ambiguous", "Indeterminate", "5 mm", "gap", "above 1 in margin."):  # fmt: skip
        assert word in titles, word
    cut = {**row, "padded": False, "issues": "gap; the outlines reach over 36.7 mm: larger than the 32 mm box"}
    found = {flag["title"]: flag["text"] for flag in quality_flags(cut, readings)}
    assert "(the outlines reach over 36.7 mm)" in found["Larger than the cube"]
    assert found["Found while reading the scan"] == "gap"  # what a flag says is said once
    clean = {"n_readers": 4, "n_readers_masked": 4, "hu_calibrated": True, "slice_thickness_mm": 1.25}
    assert quality_flags(clean, {}) == []


@pytest.mark.parametrize(
    ("votes", "wanted"),
    [([3, 4, 3, 4], "median 3.5: rated high"), ([3, 2, 3, 5], "median 3.0: indeterminate"),
     ([2, 2, 3, 5], "median 2.5: rated low")],
)  # fmt: skip
def test_the_label_is_told_by_the_median(made, tmp_path, votes, wanted):
    store = made.store(tmp_path / "store", n=1)
    store.votes["malignancy"] = votes
    store.manifest["malignancy_median"] = float(np.median(votes))
    nodule_report(store, store.nodule_ids[0], tmp_path, pdf=False)
    text = (tmp_path / f"{store.nodule_ids[0]}.html").read_text()
    assert wanted in text
    if votes == [3, 4, 3, 4]:
        assert "indeterminate" not in text  # one word for one nodule
