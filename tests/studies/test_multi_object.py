"""ReaL labels, WordNet distance, and which images have several objects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies.hypernyms import ancestors, distance, hypernyms
from studies.multi_object import random_numbers, read_multi, select_multi, write_multi
from studies.real_labels import read_real_labels

from lidc_xai.errors import DataError, UsageError
from lidc_xai.imagenet import ClassNames


@pytest.fixture(scope="module")
def names() -> ClassNames:
    found = ClassNames.of_imagenet(1000)
    assert found is not None
    return found


def apart(names: ClassNames, first: str, second: str) -> float:
    a, b = (names.synset(names.find(text)) for text in (first, second))
    assert a is not None
    assert b is not None
    return distance(a, b)


def test_every_class_reaches_the_root_and_nothing_leads_nowhere(names: ClassNames) -> None:
    known = hypernyms()
    assert names.synsets is not None
    assert set(names.synsets) <= known.keys()
    assert all(parent in known for parents in known.values() for parent in parents)
    assert [synset for synset, parents in known.items() if not parents] == ["n00001740"]
    assert all("n00001740" in ancestors(synset) for synset in names.synsets)


def test_the_distance_is_wu_and_palmers(names: ClassNames) -> None:
    appenzeller, entlebucher = "n02107908", "n02108000"
    (parent,) = hypernyms()[appenzeller]
    assert hypernyms()[entlebucher] == (parent,)
    siblings = 1 / (ancestors(parent)["n00001740"] + 1)  # 1 − 2 d / (1 + 1 + 2 d)
    assert distance(appenzeller, entlebucher) == pytest.approx(siblings)
    pug, tabby = ancestors("n02110958"), ancestors("n02123045")
    common = {synset: ancestors(synset)["n00001740"] for synset in pug.keys() & tabby.keys()}
    wanted = min(1 - 2 * d / (pug[synset] + tabby[synset] + 2 * d) for synset, d in common.items() if d)
    assert distance("n02110958", "n02123045") == pytest.approx(wanted)
    assert distance("n02110958", "n02110958") == 0
    assert distance("n02123045", "n02110958") == distance("n02110958", "n02123045")
    assert apart(names, "Appenzeller", "EntleBucher") < 0.15 < 0.4 < apart(names, "golden retriever", "mountain bike")
    with pytest.raises(UsageError, match="n00000000"):
        ancestors("n00000000")


def test_kinds_of_one_thing_are_one_object_and_two_names_too(names: ClassNames) -> None:
    dog, breed, bike = (names.find(text) for text in ("Appenzeller", "EntleBucher", "mountain bike"))
    glass, glasses = names.find("sunglass"), names.find("sunglasses, dark glasses, shades")
    labels = [(dog, breed), (dog, bike), (bike,), (), *[(glass, glasses)] * 6, (glasses, dog), (glass, bike, breed)]
    found = select_multi(labels, names.synsets, max_overlap=0.5)
    assert [one.number for one in found.chosen] == [2, 11, 12]
    assert found.chosen[2].pair in ((bike, breed), (glass, breed))
    assert found.counts["images_by_labels"] == {0: 1, 1: 1, 2: 9, 3: 1}
    assert found.counts["images_with_far_pair"] == 9
    assert found.counts["images_with_different_objects"] == 3
    assert len(select_multi(labels, names.synsets, max_overlap=1.0).chosen) == 9
    assert [one.number for one in select_multi(labels, names.synsets, min_distance=1.0).chosen] == []


def test_classes_of_no_dictionary_are_all_different() -> None:
    assert [one.pair for one in select_multi([(0, 1), (2,), (1, 0)], None).chosen] == [(0, 1), (1, 0)]


def test_the_draw_is_seeded_and_does_not_depend_on_what_is_missing(names: ClassNames) -> None:
    everything = range(1, 501)
    some = random_numbers(everything, 50, seed=3, total=500)
    assert some == sorted(set(some))
    assert some == random_numbers(everything, 50, seed=3, total=500)
    assert some != random_numbers(everything, 50, seed=4, total=500)
    gaps = random_numbers([k for k in everything if k != some[0]], 50, seed=3, total=500)
    assert len(set(gaps) & set(some)) == 49
    dog, bike = names.find("EntleBucher"), names.find("mountain bike")
    chosen = select_multi([(dog, bike)] * 20, names.synsets, count=5, seed=1, max_overlap=1.0, available=range(5, 15))
    assert len(chosen.chosen) == 5
    assert all(5 <= one.number < 15 for one in chosen.chosen)


def test_a_list_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = select_multi([(0, 1), (2, 0, 1)], None)
    write_multi(tmp_path / "list.csv", found)
    assert tuple(read_multi(tmp_path / "list.csv")) == found.chosen
    (tmp_path / "other.csv").write_text("image,labels\n1,2 3\n")
    with pytest.raises(DataError, match="columns image, labels, pair"):
        read_multi(tmp_path / "other.csv")
    with pytest.raises(UsageError, match="no such list"):
        read_multi(tmp_path / "absent.csv")


def test_real_labels_of_another_length_or_kind_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "real.json"
    file.write_text(json.dumps([[0], [], [5, 2]]))
    assert read_real_labels(file, images=3) == ((0,), (), (5, 2))
    with pytest.raises(DataError, match="has labels of 3 images, the set has 50000"):
        read_real_labels(file)
    with pytest.raises(DataError, match=r"image 3 has \[5, 2\]; wanted class numbers 0 to 4"):
        read_real_labels(file, images=3, classes=5)
    file.write_text("{}")
    with pytest.raises(DataError, match="got a dict"):
        read_real_labels(file, images=3)
    file.write_text("[[0], ")
    with pytest.raises(DataError, match="is no JSON"):
        read_real_labels(file, images=3)
    with pytest.raises(UsageError, match="no such file"):
        read_real_labels(tmp_path / "absent.json")


def test_x_multi_of_the_published_labels(names: ClassNames, shared: Path) -> None:
    labels = read_real_labels(shared / "imagenet" / "real.json")
    assert labels == read_real_labels()  # timm's copy is the same file
    found = select_multi(labels, names.synsets)
    assert found.counts["images_by_labels"] == {
        0: 3163, 1: 39394, 2: 5408, 3: 1319, 4: 411, 5: 161, 6: 88, 7: 41, 8: 13, 9: 2
    }  # fmt: skip
    assert found.counts["pairs"] == 5883
    assert found.counts["images_with_different_objects"] == 4515
    committed = Path(__file__).parents[2] / "reports" / "imagenet" / "x_multi.csv"
    assert [one.pair for one in read_multi(committed)] == [one.pair for one in found.chosen]
    assert all(set(one.pair) <= set(labels[one.number - 1]) and one.distance >= 0.4 for one in found.chosen)
