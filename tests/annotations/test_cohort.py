"""Named cohorts: counts, reasons for everything left out, and the table's columns."""

import numpy as np
import pytest

from lidc_xai.annotations import (
    COHORTS,
    ROW_COLUMNS,
    VOTE_COLUMNS,
    cohort_exclusions,
    nodule_row,
    nodule_table,
    p_calcified,
    select_cohort,
    votes_table,
)
from lidc_xai.errors import UsageError
from lidc_xai.ratings import BIOMARKERS, READER_RATINGS

DESIGN_COLUMNS = [
    "nodule_id", "patient_id", "series_uid", "scan_index", "cluster_index", "annotation_ids", "n_readers", "ambiguous",
    "is_from_initial", "label", "malignancy_median",
    *(column for name in BIOMARKERS for column in (name, f"{name}_sd")),
    "p_calcified", "centroid_i", "centroid_j", "centroid_k", "centroid_z_mm",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "malignant", "benign", "indeterminate"),
    [
        ("paper854", 411, 443, 0),
        ("deterministic855", 412, 443, 0),
        ("all862", 415, 447, 0),
        ("full1366", 415, 447, 504),
    ],
)
def test_counts_and_a_reason_for_every_other_nodule(name, malignant, benign, indeterminate, nodules):
    cohort, excluded = select_cohort(name), cohort_exclusions(name)
    assert (cohort.label == 1).sum() == malignant
    assert (cohort.label == 0).sum() == benign
    assert cohort.label.isna().sum() == indeterminate
    everything = [nodule.nodule_id for nodule in nodules]
    assert sorted([*cohort.nodule_id, *excluded.nodule_id]) == sorted(everything)
    inside = set(cohort.nodule_id)
    assert [key for key in everything if key in inside] == list(cohort.nodule_id)
    assert (excluded.stage == "cohort").all()
    assert (excluded.reason.str.len() > 10).all()


def test_every_cohort_is_tested_above():
    assert set(COHORTS) == {"paper854", "deterministic855", "all862", "full1366"}


def test_columns_are_the_contract():
    cohort = select_cohort("paper854")
    assert list(cohort.columns[: len(DESIGN_COLUMNS)]) == DESIGN_COLUMNS
    assert {"slice_thickness_mm", "pixel_spacing_mm", "contrast_used"} <= set(cohort.columns)
    numbers = cohort[[*BIOMARKERS, *(f"{name}_sd" for name in BIOMARKERS)]]
    assert np.isfinite(numbers.to_numpy()).all()
    assert (cohort.annotation_ids.map(len) == cohort.n_readers).all()
    assert cohort.n_readers.isin([3, 4]).all()
    assert (cohort.scan_index == 1).all()


def test_label_follows_the_median_and_three_is_neither(by_id):
    cohort = select_cohort("full1366")
    assert (cohort.label.fillna(-1) == cohort.malignancy_median.map(lambda m: -1 if m == 3 else int(m > 3))).all()


def test_reasons_name_the_rule_that_was_broken():
    reasons = cohort_exclusions("paper854").set_index("nodule_id").reason
    assert "indeterminate" in " ".join(reasons)
    assert "only the first" in reasons.filter(like="-s2-").unique()[0]
    assert "32 mm box" in reasons["LIDC-IDRI-0463-s1-n0"]
    assert "duplicate z" in reasons["LIDC-IDRI-0085-s1-n0"]
    lost = set(select_cohort("all862").nodule_id) - set(select_cohort("paper854").nodule_id)
    assert len(lost) == 8
    assert set(select_cohort("deterministic855").nodule_id) - set(select_cohort("paper854").nodule_id) == {
        "LIDC-IDRI-0052-s1-n1"
    }


def test_geometric_reasons_are_in_the_data(by_id):
    steps = {key: np.diff(by_id[f"LIDC-IDRI-{key}-s1-n0"].slice_positions_mm) for key in ("0267", "0672", "0490")}
    assert np.isclose(steps["0267"], 0.5).sum() == 2
    assert np.isclose(steps["0267"], [[0.5], [2.5]]).any(axis=0).all()
    assert np.isclose(steps["0672"], 1.25, atol=1e-4).sum() == 3
    assert np.median(steps["0672"]) == pytest.approx(0.625, abs=1e-4)
    assert np.ptp(steps["0490"]) > 5e-5


def test_unknown_cohort_lists_the_names():
    for function in (select_cohort, cohort_exclusions):
        with pytest.raises(UsageError, match=r"'paper'.*paper854, deterministic855, all862, full1366"):
            function("paper")


def test_a_row_is_the_mean_and_spread_of_the_votes(by_id):
    nodule = by_id["LIDC-IDRI-0001-s1-n0"]
    row = nodule_row(nodule)
    assert tuple(row) == ROW_COLUMNS
    spiculation = [reading.ratings["spiculation"] for reading in nodule.readers]
    assert row["spiculation"] == pytest.approx(np.mean(spiculation))
    assert row["spiculation_sd"] == pytest.approx(np.std(spiculation, ddof=1))
    assert row["diameter"] == pytest.approx(np.mean([reading.diameter_mm for reading in nodule.readers]))
    assert row["annotation_ids"] == (84, 85, 86, 87)
    assert row["label"] == 1
    columns = np.mean([np.concatenate([c.ij[:, 0] for c in r.contours]).mean() for r in nodule.readers])
    assert row["centroid_i"] == pytest.approx(columns)
    assert nodule.slice_positions_mm[round(row["centroid_k"])] == pytest.approx(row["centroid_z_mm"], abs=2.5)


def test_one_reader_has_no_spread(nodules):
    row = nodule_row(next(nodule for nodule in nodules if nodule.n_readers == 1))
    assert np.isnan(row["margin_sd"])
    assert np.isfinite(row["margin"])


def test_p_calcified_is_the_share_below_six(nodules):
    mixed = next(n for n in nodules if {r.ratings["calcification"] for r in n.readers} == {3, 6} and n.n_readers == 4)
    seen = sum(reading.ratings["calcification"] == 3 for reading in mixed.readers)
    assert p_calcified(mixed) == seen / 4
    assert nodule_row(mixed)["p_calcified"] == seen / 4


def test_votes_are_all_there(nodules):
    votes = votes_table(nodules[:50])
    assert tuple(votes.columns) == VOTE_COLUMNS
    assert len(votes) == sum(nodule.n_readers for nodule in nodules[:50])
    means = votes.groupby("nodule_id", sort=False)[[*READER_RATINGS]].mean()
    table = nodule_table(nodules[:50]).set_index("nodule_id")
    np.testing.assert_allclose(means.to_numpy(), table[[*READER_RATINGS]].to_numpy())
    assert votes.groupby("nodule_id").reader.min().eq(1).all()


def test_survives_parquet_and_csv(tmp_path):
    from pandas import read_csv, read_parquet

    cohort = select_cohort("full1366")
    cohort.to_parquet(tmp_path / "c.parquet")
    back = read_parquet(tmp_path / "c.parquet")
    assert back.label.isna().sum() == 504
    assert [tuple(ids) for ids in back.annotation_ids] == list(cohort.annotation_ids)
    cohort.to_csv(tmp_path / "c.csv", index=False)
    assert read_csv(tmp_path / "c.csv").label.value_counts().to_dict() == {0: 447, 1: 415}
