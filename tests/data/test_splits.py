"""Splits: no patient on both sides, every nodule tested once, seeds that repeat, and refusals in one line."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lidc_xai.annotations import select_cohort
from lidc_xai.data import FoldIds, Splits, load_splits, make_splits, split_store
from lidc_xai.data.splits import PARTS, describe
from lidc_xai.errors import DataError, UsageError


@pytest.fixture(scope="module")
def cohort() -> pd.DataFrame:
    return select_cohort("paper854")


@pytest.fixture(scope="module")
def splits(cohort) -> Splits:
    return make_splits(cohort)


@pytest.fixture(scope="module")
def paper(cohort) -> Splits:
    return make_splits(cohort, kind="paper")


@pytest.fixture(scope="module")
def indeterminate() -> pd.DataFrame:
    return select_cohort("full1366")


def test_no_patient_on_two_sides_and_every_nodule_tested_once(cohort, splits):
    patient_of = cohort.set_index("nodule_id").patient_id
    tested = []
    for fold in range(5):
        ids = splits.nodules(cohort, fold)
        patients = [set(patient_of[getattr(ids, part)]) for part in PARTS]
        assert not patients[0] & patients[1]
        assert not patients[0] & patients[2]
        assert not patients[1] & patients[2]
        assert sorted([*ids.train, *ids.validation, *ids.test]) == sorted(cohort.nodule_id)
        assert splits.leaking_share(cohort, fold) == 0
        tested += ids.test
    assert sorted(tested) == sorted(cohort.nodule_id)
    assert (splits.kind, splits.by, splits.leaks, splits.seed) == ("patient", "patient_id", False, 44)


def test_stratified_and_of_the_wanted_size(cohort, splits):
    for row in describe(splits, cohort):
        assert row["malignant"] / row["nodules"] == pytest.approx(411 / 854, abs=0.03)
        share = {"train": 0.8 * 6 / 7, "validation": 0.8 / 7, "test": 0.2}[row["part"]]
        assert row["nodules"] / 854 == pytest.approx(share, abs=0.02)


def test_seed_decides(cohort):
    some = cohort.iloc[:150]
    assert make_splits(some, n_folds=3) == make_splits(some, n_folds=3)
    assert make_splits(some, n_folds=3, seed=1).folds != make_splits(some, n_folds=3, seed=2).folds


def test_the_papers_split_leaks_as_measured_and_says_so(cohort):
    splits = make_splits(cohort, kind="paper", validation_share=0)
    shares = [splits.leaking_share(cohort, fold) for fold in range(5)]
    assert min(shares) > 0.50
    assert max(shares) < 0.57
    assert splits.leaks
    assert splits.by == "nodule_id"
    for fold in splits.folds:
        assert fold.validation == fold.test  # as the authors did
        assert not set(fold.train) & set(fold.test)


def test_the_papers_split_can_choose_its_checkpoint_elsewhere(paper):
    for fold in paper.folds:
        assert not set(fold.validation) & {*fold.test, *fold.train}
        assert len(fold.train) + len(fold.validation) + len(fold.test) == 854


def test_indeterminate_nodules_go_with_their_patient(indeterminate):
    splits = make_splits(indeterminate)
    ids = splits.nodules(indeterminate, 0)
    assert len(ids.train) + len(ids.validation) + len(ids.test) == 1366
    paper = make_splits(indeterminate, kind="paper")
    tested = {key for fold in paper.folds for key in fold.test}
    assert tested == set(indeterminate.nodule_id[indeterminate.label.notna()])


def test_saved_and_loaded(cohort, splits, paper, tmp_path):
    for made, ids in ((splits, cohort.patient_id), (paper, cohort.nodule_id)):
        path = made.save(tmp_path / "splits" / f"{made.kind}.json")
        assert load_splits(path) == made
        content = json.loads(path.read_text())
        assert content["leaks"] is (made.kind == "paper")
        assert {key for fold in content["folds"] for key in fold["test"]} == set(ids)


def test_store_gets_a_named_file(store):
    path = split_store(store.path, n_folds=3, seed=7)
    assert path == store.path / "splits" / "patient-3fold-seed7.json"
    assert len(load_splits(path)) == 3
    assert load_splits(path).nodules(store.manifest, 0).test


def test_subset_of_a_store_is_fine_and_a_stranger_is_not(cohort, splits):
    some = splits.nodules(cohort.iloc[:100], 2)
    assert sorted([*some.train, *some.validation, *some.test]) == sorted(cohort.nodule_id[:100])
    strange = pd.concat([cohort, cohort.iloc[:1].assign(patient_id="NEW", nodule_id="NEW-s1-n0")])
    with pytest.raises(DataError, match="in no part of the splits, first NEW"):
        splits.nodules(strange, 0)
    with pytest.raises(UsageError, match="fold 5 does not exist"):
        splits.nodules(cohort, 5)


def change(splits_path, **values):
    content = json.loads(splits_path.read_text()) | values
    splits_path.write_text(json.dumps(content))


def test_a_patient_on_both_sides_is_refused_unless_it_is_the_papers(splits, tmp_path):
    guilty = splits.folds[1].test[0]
    spoiled = replace(splits.folds[1], train=[*splits.folds[1].train, guilty])
    path = replace(splits, folds=[splits.folds[0], spoiled, *splits.folds[2:]]).save(tmp_path / "s.json")
    with pytest.raises(DataError, match=f"fold 1 has 1 patients in train and in test .first {guilty}"):
        load_splits(path)


def test_a_split_by_nodule_that_hides_its_leak_is_refused(cohort, paper, tmp_path):
    path = paper.save(tmp_path / "s.json")
    change(path, leaks=False)
    with pytest.raises(DataError, match="only the paper's split leaks"):
        load_splits(path)
    with pytest.raises(DataError, match="patients in train and in"):
        replace(paper, kind="patient", leaks=False).nodules(cohort, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folds": [{"train": ["a"]}]}, "not a file of splits"),
        ({"folds": 3}, "not a file of splits"),
        ({"folds": []}, "not known"),
        ({"extra": 1}, "not a file of splits"),
        ({"kind": "random"}, "not known"),
        ({"by": "label"}, "not known"),
    ],
)
def test_damaged_file(values, message, splits, tmp_path):
    path = splits.save(tmp_path / "s.json")
    change(path, **values)
    with pytest.raises(DataError, match=message) as caught:
        load_splits(path)
    assert str(path) in str(caught.value)


def test_tested_twice_and_trained_on_the_test(paper, tmp_path):
    path = replace(paper, folds=[paper.folds[0], paper.folds[0]]).save(tmp_path / "a.json")
    with pytest.raises(DataError, match="tested in two folds"):
        load_splits(path)
    first = paper.folds[0]
    path = replace(paper, folds=[FoldIds(first.train + first.test, [], first.test)]).save(tmp_path / "b.json")
    with pytest.raises(DataError, match="trains on nodules that it tests"):
        load_splits(path)


def test_not_json_and_not_there(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match="not a file of splits"):
        load_splits(tmp_path / "a.json")
    with pytest.raises(UsageError, match="does not exist"):
        load_splits(tmp_path / "b.json")


def test_what_cannot_be_split(cohort):
    one_patient = cohort[cohort.patient_id == cohort.patient_id.iloc[0]]
    with pytest.raises(UsageError, match="at least 5 patients with a benign nodule, got 0"):
        make_splits(one_patient)
    with pytest.raises(UsageError, match="with a malignant nodule, got 0"):
        make_splits(cohort[cohort.label == 0])
    with pytest.raises(UsageError, match="no column 'patient_id'"):
        make_splits(cohort.drop(columns="patient_id"))
    with pytest.raises(UsageError, match="n_folds is 1"):
        make_splits(cohort, n_folds=1)
    with pytest.raises(UsageError, match="kind 'nodule' are not known; choose patient or paper"):
        make_splits(cohort, kind="nodule")
    for kind, share in (("patient", 0), ("patient", 0.7), ("paper", -0.1)):
        with pytest.raises(UsageError, match="validation_share"):
            make_splits(cohort, kind=kind, validation_share=share)
    few = cohort.drop_duplicates("patient_id").groupby("label").head(4)
    with pytest.raises(UsageError, match=r"too few for a validation share of 0\.05"):
        make_splits(few, n_folds=2, validation_share=0.05)
    two = cohort.drop_duplicates("patient_id").sort_values("label").iloc[-42:-40]  # malignant
    lopsided = pd.concat([two, cohort[cohort.label == 0].drop_duplicates("patient_id").iloc[:40]])
    with pytest.raises(UsageError, match=r"part of fold 0 has no malignant nodule; take fewer folds"):
        make_splits(lopsided, n_folds=2, validation_share=0.3)


@pytest.mark.parametrize("kind", ["patient", "paper"])
def test_the_papers_holdout_split(kind: str) -> None:
    """Section 5: .7225 to learn from, .1275 to choose on, .15 to test, stratified."""
    from lidc_xai.annotations import select_cohort
    from lidc_xai.data import make_holdout

    cohort = select_cohort("paper854")
    splits = make_holdout(cohort, kind=kind)
    assert (len(splits), splits.leaks) == (1, kind == "paper")
    ids = splits.nodules(cohort, 0)
    shares = [len(part) / len(cohort) for part in (ids.train, ids.validation, ids.test)]
    np.testing.assert_allclose(shares, [0.7225, 0.1275, 0.15], atol=0.002 if kind == "paper" else 0.03)
    assert len({*ids.train, *ids.validation, *ids.test}) == len(cohort)
    label = cohort.set_index("nodule_id")["label"].astype(float)
    assert abs(label[ids.test].mean() - label.mean()) < 0.05
    assert make_holdout(cohort, kind=kind) == splits
    assert make_holdout(cohort, seed=1, kind=kind) != splits
