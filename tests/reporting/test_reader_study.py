"""Reader study: blinding, shuffling, scoring, and a wrong AI that readers follow or do not."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from studies.reader_study import RATED, cases_needed, export_reader_study, over_readers, score_reader_study

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.statistics import bootstrap_mean


@pytest.fixture(scope="module")
def cases(made, tmp_path_factory):
    """30 nodules with maps and predictions."""
    root = tmp_path_factory.mktemp("cases")
    store = made.store(root / "store", n=30)
    maps = {name: made.maps(name, seed=k) for k, name in enumerate(store.nodule_ids)}
    return SimpleNamespace(root=root, store=store, maps=maps, predictions=made.predictions(store.nodule_ids))


@pytest.fixture(scope="module")
def reader_study(cases):
    ids = cases.store.nodule_ids[:8]
    paths = export_reader_study(cases.store, cases.root / "readers", cases.maps, ids, seed=3)
    return SimpleNamespace(folder=cases.root / "readers", ids=ids, paths=paths)


def test_reader_study_is_blinded_shuffled_and_balanced(cases, reader_study):
    key = pd.read_csv(reader_study.folder / "key-for-scoring-only.csv")
    assert (key.groupby("nodule_id")["condition"].agg(set) == {"with", "without"}).all()
    assert (key.groupby(["session", "condition"]).size() == 4).all()
    orders = [key.loc[key["session"] == session, "nodule_id"].tolist() for session in (1, 2)]
    assert orders[0] != orders[1]
    assert orders[0] != reader_study.ids
    shown = key.set_index(["session", "case"])["condition"]
    for path in reader_study.paths:
        if not path.name.startswith("case-"):
            continue
        text = path.read_text(encoding="utf-8")
        assert "LIDC-IDRI-0" not in text
        assert not re.search(r'class="consensus"[^>]*d="M|d="M[^"]+" (?:class="consensus"|data-reader)', text)
        following = f"case-{int(path.stem[-3:]) + 1:03d}"
        assert (f'href="{following}.html"' in text) == (path.with_name(f"{following}.html") in reader_study.paths)
        condition = shown[int(path.parent.name[-1]), path.stem]
        assert ('class="map"' in text) == (condition == "with")
    sheet = pd.read_csv(reader_study.folder / "session-1" / "ratings.csv")
    assert len(sheet) == 8
    assert set(RATED) < set(sheet.columns)


@pytest.mark.parametrize(("bias", "seed"), [(0.0, 0), (0.8, 1)])
def test_automation_bias_is_found_where_it_was_planted(cases, tmp_path, bias, seed):
    """Readers who move by ``bias`` steps towards a wrong AI, and not towards a right one, in noise of half a step."""
    store, maps = cases.store, cases.maps
    rng = np.random.default_rng(seed)
    predictions = pd.DataFrame({"nodule_id": store.nodule_ids, "malignancy_probability": rng.uniform(0.1, 0.9, 30)})
    high = predictions["malignancy_probability"] > 0.5
    store.manifest["label"] = np.where(np.arange(30) < 6, ~high, high).astype(float)  # six errors of its own
    store.manifest.loc[29, "label"] = np.nan
    folder = tmp_path / "study"
    paths = export_reader_study(store, folder, maps, predictions=predictions, wrong_share=0.4, seed=seed)
    key = pd.read_csv(folder / "key-for-scoring-only.csv")
    assert key["ai"].value_counts().to_dict() == {"wrong": 12, "right": 11, "own error": 6, "no label": 1}
    assert not set(key.loc[key["ai"] == "wrong", "nodule_id"]) & {*store.nodule_ids[:6], store.nodule_ids[29]}
    by_id = predictions.set_index("nodule_id")["malignancy_probability"]
    for row in key[key["ai"] == "wrong"].itertuples():
        assert row.shown == pytest.approx(1 - by_id[row.nodule_id])
    pages = [path.read_text(encoding="utf-8") for path in paths if path.name.startswith("case-")]
    assert sum("<b>AI:</b>" in text for text in pages) == 30
    assert not any("wrong" in text for text in pages)  # nobody is told
    sheets = {}
    for reader in ("anna", "ben", "carla", "dan", "eve", "finn"):
        own = dict(zip(store.nodule_ids, rng.uniform(2, 4, 30), strict=True))
        for session in (1, 2):
            sheet = pd.read_csv(folder / f"session-{session}" / "ratings.csv")
            rows = sheet.merge(key, on=["session", "case"])
            pull = np.where(rows["ai"] == "wrong", bias * np.sign(rows["shown"] - 0.5), 0.0)
            sheet["malignancy"] = (rows["nodule_id"].map(own) + pull + rng.normal(0, 0.5, len(rows))).clip(1, 5)
            sheet["trust"] = np.where(rows["condition"] == "with", 70, np.nan)
            path = tmp_path / f"{reader}-{session}.csv"
            sheet.to_csv(path, index=False)
            sheets.setdefault(reader, []).append(path)
    scores = score_reader_study(folder, sheets, store)
    wrong = scores["follows"]["wrong"]
    assert wrong["low"] <= bias <= wrong["high"]
    assert (wrong["low"] > 0) == (bias > 0)
    assert scores["follows"]["right"]["low"] < 0 < scores["follows"]["right"]["high"]
    assert set(scores["follows"]) == {"right", "wrong", "own error"}
    assert scores["trust"] == {"without": None, "with": 70.0}
    with pytest.raises(UsageError, match="asks for more than the 23 whose label the model sides with"):
        export_reader_study(store, folder, maps, predictions=predictions, wrong_share=0.8)


@pytest.mark.parametrize("sd", [0.0, 0.3])
def test_the_interval_holds_the_bias_of_other_readers_on_other_patients(sd):
    """Four readers whose own bias lies ``sd`` about 0.5 steps, 40 cases of 20 patients that sway all readers alike."""
    rng, ids = np.random.default_rng(5), [f"n{k}" for k in range(40)]
    patients = pd.Series([f"p{k // 2}" for k in range(40)], index=ids)
    rows, covered = pd.MultiIndex.from_product([range(4), ids]), 0
    for _ in range(200):
        reader, patient = np.repeat(rng.normal(0.5, sd, 4), 40), np.tile(np.repeat(rng.normal(0, 0.3, 20), 2), 4)
        moved = pd.Series(reader + patient + rng.normal(0, 0.7, 160), index=rows)
        mean, low, high = over_readers(moved, patients)
        assert mean == pytest.approx(moved.mean())
        covered += low <= 0.5 <= high
    assert 0.92 <= covered / 200 <= 0.99
    alone = bootstrap_mean(moved.loc[0].to_numpy(), patients.tolist())
    assert over_readers(moved.loc[[0]], patients) == pytest.approx((alone.mean, alone.low, alone.high), abs=0.02)
    assert over_readers(moved.iloc[:0], patients) == (None, None, None)


def test_a_wrong_ai_needs_predictions(cases, tmp_path):
    with pytest.raises(UsageError, match="needs predictions"):
        export_reader_study(cases.store, tmp_path, cases.maps, wrong_share=0.2)
    with pytest.raises(UsageError, match="have no prediction, the first is"):
        export_reader_study(cases.store, tmp_path, cases.maps, predictions=cases.predictions.iloc[:2])


def test_power_of_a_reader_study_is_that_of_simulated_ones():
    assert cases_needed(0.25, sd=1.0, readers=4) == 32
    cases = cases_needed(0.3, sd=1.0, readers=3, reader_sd=0.1)
    rng = np.random.default_rng(0)
    means = 0.3 + rng.normal(0, 1.0, (4000, cases, 3)).mean((1, 2)) + rng.normal(0, 0.1, (4000, 3)).mean(1)
    error = np.sqrt(1 / (cases * 3) + 0.01 / 3)
    assert (np.abs(means) > 1.96 * error).mean() == pytest.approx(0.8, abs=0.03)
    with pytest.raises(UsageError, match="ask more readers"):
        cases_needed(0.1, sd=1.0, readers=2, reader_sd=0.5)


def fill(cases, reader_study, reader: str, errors: dict[str, float]) -> list:
    """A reader who is off by ``errors[condition]`` from LIDC's mean malignancy."""
    key = pd.read_csv(reader_study.folder / "key-for-scoring-only.csv")
    votes = cases.store.votes.groupby("nodule_id")["malignancy"].mean()
    paths = []
    for session in (1, 2):
        sheet = pd.read_csv(reader_study.folder / f"session-{session}" / "ratings.csv")
        rows = sheet.merge(key, on=["session", "case"])
        truth = rows["nodule_id"].map(votes)
        off = rows["condition"].map(errors)
        sheet["malignancy"] = np.where(truth > 3, truth - off, truth + off)
        sheet["seconds"] = np.where(rows["condition"] == "with", 40, 20)
        path = reader_study.folder / f"{reader}-{session}.csv"
        sheet.to_csv(path, index=False)
        paths.append(path)
    return paths


def test_reader_study_scores_what_was_filled_in(cases, reader_study, tmp_path):
    filled = {name: fill(cases, reader_study, name, {"with": 0.25, "without": 0.75}) for name in ("anna", "ben")}
    scores = score_reader_study(reader_study.folder, filled, cases.store, tmp_path)
    malignancy = scores["ratings"]["malignancy"]
    assert malignancy["error_with"] == pytest.approx(0.25)
    assert malignancy["error_without"] == pytest.approx(0.75)
    assert malignancy["change"] == pytest.approx(-0.5)
    assert malignancy["pairs"] == 16
    assert scores["seconds"] == {"without": 20, "with": 40}
    assert scores["ratings"]["margin"]["error_with"] is None
    assert json.loads((tmp_path / "scores.json").read_text()) == scores


def test_reader_study_refuses_wrong_sheets(cases, reader_study, tmp_path):
    blank = [reader_study.folder / "session-1" / "ratings.csv"]
    with pytest.raises(UsageError, match="no rating is filled in"):
        score_reader_study(reader_study.folder, {"a": blank}, cases.store)
    sheet = pd.read_csv(blank[0]).astype({"malignancy": object})
    sheet.loc[2, "malignancy"] = "7"
    sheet.to_csv(tmp_path / "wrong.csv", index=False)
    with pytest.raises(DataError, match=r"case-\d+, malignancy: 7\S* is not between 1 and 5"):
        score_reader_study(reader_study.folder, {"a": [tmp_path / "wrong.csv"]}, cases.store)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="has no column 'session'"):
        score_reader_study(reader_study.folder, {"a": [tmp_path / "other.csv"]}, cases.store)
    with pytest.raises(UsageError, match="have no map, the first is"):
        export_reader_study(cases.store, tmp_path, {})
    with pytest.raises(UsageError, match="output 'colour' has no map"):
        export_reader_study(cases.store, tmp_path, cases.maps, outputs=["colour"])
