"""The label rule and the words for the ends of the scales."""

import pytest

from lidc_xai.ratings import BIOMARKERS, OUTPUTS, PAPER_OUTPUT_ORDER, SCALES, malignancy_label


@pytest.mark.parametrize(
    ("votes", "label"),
    [([4, 4, 3], 1), ([3, 4], 1), ([3, 3, 5], None), ([2, 3, 4], None), ([2, 2, 5, 3], 0), ([1], 0)],
)
def test_label_is_the_side_of_the_median(votes, label):
    assert malignancy_label(votes) == label


def test_every_output_has_a_scale_and_words():
    assert len(BIOMARKERS) == 8
    assert sorted(PAPER_OUTPUT_ORDER) == sorted(BIOMARKERS)
    for name in OUTPUTS:
        assert SCALES[name].towards(1) != SCALES[name].towards(-1)


def test_words_follow_the_lidc_definitions():
    assert SCALES["margin"].in_words(4.8) == "sharp"
    assert SCALES["sphericity"].in_words(5) == "round"
    assert SCALES["texture"].in_words(1.2) == "ground-glass"
    assert SCALES["texture"].towards(1) == "towards solid"
    assert SCALES["calcification"].in_words(6) == "absent"
    assert SCALES["calcification"].towards(1) == "towards no calcification"
    assert SCALES["diameter"].in_words(7.26) == "7.3 mm"


def test_no_word_promises_a_diagnosis():
    words = " ".join(f"{scale.low_words} {scale.high_words} {dict(scale.codes)}" for scale in SCALES.values())
    assert "cancer" not in words
