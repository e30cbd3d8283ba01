"""Classes by number, name and synset."""

from __future__ import annotations

from pathlib import Path

import pytest

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imagenet import ClassNames


@pytest.fixture(scope="module")
def names() -> ClassNames:
    found = ClassNames.of_imagenet(1000)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("243", 243),
        ("bull mastiff", 243),
        ("Bull_Mastiff", 243),
        ("n02108422", 243),
        ("boxer", 242),
        ("Greater Swiss Mountain dog", 238),
        ("killer", 148),  # one of several names of a class
        ("goldfinch", 11),
        ("carassius auratus", 1),
        ("tiger cat", 282),
        ("tiger", 292),
        ("papillo", 157),  # part of a single name
    ],
)
def test_a_class_is_found(names: ClassNames, text: str, index: int) -> None:
    assert names.find(text) == index


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1000", "class 1000 does not exist; this classifier has classes 0 to 999"),
        ("-1", "class -1 does not exist"),
        ("n00000001", "no such synset"),
        ("crane", "ambiguous: 134 crane; 517 crane; give the number"),
        ("terrier", "ambiguous: .* and .* more"),
        ("golden retreiver", "not among this classifier's 1000 classes; near: golden retriever"),
        ("qqqq", "not among this classifier's 1000 classes$"),
    ],
)
def test_what_is_not_one_class_is_refused(names: ClassNames, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        names.find(text)


def test_names_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("healthy\nill, sick\n\n", encoding="utf-8")
    names = ClassNames.from_file(path, 2)
    assert names.find("sick") == 1
    assert names.short(1) == "ill"
    assert names.synset(1) is None
    with pytest.raises(DataError, match="has 2 lines; this classifier has 3 classes"):
        ClassNames.from_file(path, 3)
    with pytest.raises(DataError, match="cannot be read"):
        ClassNames.from_file(tmp_path / "absent.txt", 3)


def test_other_counts_have_no_names() -> None:
    assert ClassNames.of_imagenet(7) is None
    larger = ClassNames.of_imagenet(21841)
    assert larger is not None
    assert len(larger) == 21841
