"""Cohort, benchmark and sheet: figures, flow, galleries."""

import json
import re
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lidc_xai.annotations import load_nodules
from lidc_xai.errors import UsageError
from lidc_xai.evaluation.decision import decision_curve
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.nodules.agreement import FIGURES
from lidc_xai.nodules.failures import failure_table
from lidc_xai.ratings import BIOMARKERS, OUTPUTS
from lidc_xai.reporting import benchmark_report, cohort_report, image_sheet
from lidc_xai.reporting.cohort.figures import cohort_overlap, flow, galleries, radial_curves
from lidc_xai.reporting.cohort.verdict import cohort_verdict
from lidc_xai.reporting.plots import Chart, limits, ticks
from lidc_xai.skipped import Skipped, write_skipped


def out_of_fold(store) -> pd.DataFrame:
    """A predictions.csv with the columns of a cross-validation."""
    rng = np.random.default_rng(0)
    manifest = store.manifest.set_index("nodule_id")
    rows = []
    for place, nodule_id in enumerate(store.nodule_ids):
        votes = store.votes[store.votes["nodule_id"] == nodule_id]
        label = float(manifest.loc[nodule_id, "label"])
        probability = float(np.clip(0.5 + (label - 0.5) * 0.5 + rng.normal(0, 0.25), 0.02, 0.98))
        row = {
            "nodule_id": nodule_id, "patient_id": manifest.loc[nodule_id, "patient_id"], "fold": place % 3,
            "label": label, "n_readers": 4, "simulated": True, "split_kind": "patient",
            "malignancy_probability": probability,
            "baseline.diameter_only.malignancy_probability": 0.4 + 0.01 * place,
            "malignancy_readers": votes["malignancy"].mean(), "malignancy_readers_sd": votes["malignancy"].std(),
        }  # fmt: skip
        for name in BIOMARKERS:
            column = votes["diameter_mm"] if name == "diameter" else votes[name]
            row |= {f"{name}_readers": column.mean(), f"{name}_readers_sd": column.std(), f"{name}_train_sd": 1.0}
            row[name] = column.mean() + rng.normal(0, 0.5)
        rows.append(row)
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def cohort(made, tmp_path_factory):
    """24 nodules with everything that a cohort's report can show."""
    from lidc_xai.training import evaluate_predictions

    root = tmp_path_factory.mktemp("cohort")
    store = made.store(root / "store", n=24)
    store.manifest["label"] = pd.array([place % 2 for place in range(24)], dtype="Int64")
    (root / "store" / "skipped.csv").write_text("nodule_id,stage,reason\nLIDC-IDRI-0900-s1-n0,read,no such series\n")
    predictions = out_of_fold(store)
    metrics = evaluate_predictions(predictions, resamples=20)
    exclusions = pd.DataFrame(
        {
            "nodule_id": [nodule.nodule_id for nodule in load_nodules()[-5:]],
            "stage": "cohort",
            "reason": ["two readers"] * 3 + ["<b>late</b>"] * 2,
        }
    )
    maps = {"cdam": {name: made.maps(name, seed=k) for k, name in enumerate(store.nodule_ids)}}
    result = cohort_report(
        store, root / "out", predictions, metrics, exclusions=exclusions, maps=maps,
        model_info={"train_patients": ["A", "B"], "seed": 44, "n_folds": 3},
        run_info={"versions": {"torch": "2"}}, pdf=False,
    )  # fmt: skip
    return SimpleNamespace(root=root, store=store, predictions=predictions, metrics=metrics, maps=maps, result=result)


def test_cohort_page_says_what_the_metrics_say(cohort):
    text = cohort.result.index.read_text(encoding="utf-8")
    auc = cohort.metrics["malignancy"]["all"]["auc"]
    assert f"{auc['value']:.3f}" in text
    assert f"{auc['low']:.3f} to {auc['high']:.3f}" in text
    assert "diameter only" in text
    within = cohort.metrics["malignancy"]["all"]["auc_within_folds"]
    assert f"{within['value']:.3f}" in text
    for phrase in ("AUC within folds", "Reliability diagram", "AUC by size", "Error of every biomarker",
                   "Radial profile of margin", "Surest and right", "Most wrong", "Most disagreed on", "Model card",
                   "CLAIM"):  # fmt: skip
        assert phrase in text, phrase
    assert "&lt;b&gt;late&lt;/b&gt;" in text
    assert not re.findall(r'(?:src|href)="(?!data:|nodules/|nodules\.html|glossary\.html|#)[^"]+"', text)
    assert (cohort.root / "out" / "nodules.html").read_text(encoding="utf-8").count('class="thumb"') == 24
    linked = set(re.findall(r'href="(nodules/[^"]+)"', text))
    assert linked
    assert all((cohort.root / "out" / name).exists() for name in linked)


def test_flow_adds_up_and_names_every_loss(cohort):
    facts = json.loads((cohort.root / "out" / "cohort.json").read_text(encoding="utf-8"))
    counts = [(step["title"], step["count"], len(step["rows"])) for step in facts["flow"]]
    every = len({nodule.nodule_id for nodule in load_nodules()} | {*cohort.store.nodule_ids, "LIDC-IDRI-0900-s1-n0"})
    assert [count for _, count, _ in counts[:3]] == [every, every - 5, 24]
    for (_, before, _), (_, after, lost) in pairwise(counts):
        assert before - lost == after
    assert facts["flow"][1]["lost"] == [{"reason": "two readers", "count": 3}, {"reason": "<b>late</b>", "count": 2}]
    never = {"reason": "not among the data that the store was made from", "count": every - 5 - 24 - 1}
    assert facts["flow"][2]["lost"] == [never, {"reason": "no such series", "count": 1}]
    assert [item["number"] for item in facts["claim"]] == list(range(1, 45))
    assert [item["number"] for item in facts["tripod"]] == list(range(1, 28))
    assert any(item["open"] for item in facts["claim"])
    assert "3 folds" in next(item["answer"] for item in facts["claim"] if item["topic"] == "How data were divided")


def test_flow_of_a_store_that_holds_more_than_the_cohort(cohort):
    """The store's other nodules are not counted among the cohort's; a report that shows some says so."""
    names = cohort.store.nodule_ids
    outside = pd.DataFrame({"nodule_id": names[:3], "stage": "cohort", "reason": "two readers"})

    def last_step(shown):
        step = flow(cohort.store, None, outside, shown)[-1]
        return step["title"], step["count"], len(step["rows"])

    assert last_step(names[3:]) == ("Nodules in the store, with their CT", 21, 1 + len(_absent(cohort.store)))
    assert last_step(names[3:10]) == ("Nodules in this report", 7, 14)
    assert last_step(names[2:]) == ("Nodules in this report", 22, 0)
    steps = flow(cohort.store, None, outside, names[2:])
    assert steps[-1]["gained"] == 1
    for before, after in pairwise(steps):
        assert before["count"] - len(after["rows"]) + after["gained"] == after["count"]


def test_a_nodule_that_was_skipped_once_and_is_there_is_not_lost(made, tmp_path):
    """A store continued after a failure: its skipped.csv may name nodules that were written since."""
    store = made.store(tmp_path / "store", n=3)
    write_skipped(store.path, [Skipped(store.nodule_ids[0], "crop", "late"), Skipped("gone-s1-n0", "crop", "no scan")])
    (asked, there) = flow(CropStore(store.path), None, None, store.nodule_ids)
    assert (asked["count"], there["count"], there["lost"]) == (4, 3, [{"reason": "no scan", "count": 1}])


def test_failures_are_counted_by_hand(cohort):
    facts = json.loads((cohort.root / "out" / "cohort.json").read_text(encoding="utf-8"))
    table = cohort.predictions.merge(cohort.store.manifest[["nodule_id", "label", "larger_than_box"]], on="nodule_id")
    known = table[table["label_y" if "label_y" in table else "label"].notna()]
    label = known["label_y" if "label_y" in known else "label"].astype(float)
    wrong = ((known["malignancy_probability"] > 0.5) != (label > 0.5)).sum()
    for name in ("box", "readers", "diameter"):
        rows = [row for row in facts["failures"] if row["property"] == name]
        assert sum(row["nodules"] for row in rows) == len(known)
        assert sum(row["wrong"] for row in rows) == wrong
    assert "Where it fails" in cohort.result.index.read_text(encoding="utf-8")
    assert "Decision curve" in cohort.result.index.read_text(encoding="utf-8")


def test_a_share_of_none_has_the_exact_interval():
    """0 of 35 patients: 1 − 0.025^(1/35) above; two nodules of one patient count once; 7 of 35 keep the bootstrap."""
    names = [f"n{place}" for place in range(36)]
    patients = [f"p{min(place, 34)}" for place in range(36)]
    manifest = pd.DataFrame({"nodule_id": names, "patient_id": patients, "label": 0.0, "diameter": 5.0})
    manifest = manifest.assign(texture=5, margin=5, spiculation=1, slice_thickness_mm=1.0, larger_than_box=False)
    votes = pd.DataFrame({"nodule_id": names, "malignancy": 1.0, "calcification": 6})

    def smallest(wrong):
        probability = np.where(np.arange(36) < wrong, 0.9, 0.1)
        table = pd.DataFrame({"nodule_id": names, "malignancy_probability": probability})
        return failure_table(table, manifest, votes)[0]

    none = smallest(0)
    assert (none["group"], none["nodules"], none["wrong"], none["share"], none["low"]) == ("< 8 mm", 36, 0, 0.0, 0.0)
    assert none["high"] == pytest.approx(1 - 0.025 ** (1 / 35))
    every = smallest(36)
    assert (every["low"], every["high"]) == (pytest.approx(0.025 ** (1 / 35)), 1.0)
    some = smallest(7)
    assert 0.05 < some["low"] < 7 / 36 < some["high"] < 0.4


def test_flow_ends_in_the_figures_that_count_what_is_shown(cohort, tmp_path):
    """A report of some of the predicted nodules: flow and warning name the same figures and numbers."""
    shown = cohort.store.nodule_ids[:10]
    made = cohort_report(
        cohort.store, tmp_path, cohort.predictions, cohort.metrics, nodule_ids=shown, pdf=False,
        model_info={"options": {"loss": {"class_weights": True}}},
    )  # fmt: skip
    facts = json.loads((tmp_path / "cohort.json").read_text(encoding="utf-8"))
    last = facts["flow"][-1]
    assert (last["title"], last["count"]) == ("Counted in the decision curve and in where it fails", 10)
    assert sum(row["nodules"] for row in facts["failures"] if row["property"] == "diameter") == 10
    assert "count all 24 nodules of the predictions" in facts["counted"]
    assert "only the 10 that this report shows" in facts["counted"]
    assert "Counted in the figures of malignancy" not in made.index.read_text(encoding="utf-8")
    whole = json.loads((cohort.root / "out" / "cohort.json").read_text(encoding="utf-8"))
    assert whole["flow"][-1]["title"] == "Counted in the figures of malignancy"
    assert whole["counted"] == ""
    answers = {item["topic"]: item["answer"] for item in [*facts["claim"], *facts["tripod"]]}
    assert answers["Class imbalance"].startswith("The loss weighs classes")
    assert answers["Explainability"] == answers["Ensembling"] == "For the authors."  # neither maps nor folds here
    answers = {item["topic"]: item["answer"] for item in whole["claim"]}
    rule = whole["flow"][1]["count"]
    assert answers["Intended sample size"].startswith(f"24 nodules of 24 patients of the {rule} that its rule gives")
    assert answers["Explainability"].startswith("Signed maps; their overlap")


def test_decision_curve_is_net_benefit():
    curve = decision_curve([1, 1, 0, 0, 0], [0.9, 0.3, 0.6, 0.2, 0.1], [0.25, 0.5])
    assert curve["model"].tolist() == pytest.approx([(2 - 1 / 3) / 5, (1 - 1) / 5])
    assert curve["all"].tolist() == pytest.approx([(2 - 3 / 3) / 5, (2 - 3) / 5])


def _absent(store):
    return {nodule.nodule_id for nodule in load_nodules()} - set(store.nodule_ids)


def test_cohort_overlap_is_the_mean_over_nodules(cohort):
    pages = [
        json.loads((cohort.root / "out" / "nodules" / f"{name}.json").read_text()) for name in cohort.store.nodule_ids
    ]
    rows = [{"overlap": page["overlap"], "patient_id": page["identifiers"]["patient_id"]} for page in pages]
    found = {(row["method"], row["output"]): row for row in cohort_overlap(rows)}
    expected = [next(row["iou"] for row in page["overlap"] if row["method"] == "centred disc") for page in pages]
    figure = found["centred disc", None]["iou"]
    assert figure["value"] == pytest.approx(np.mean(expected))
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert figure["n"] == 24


def test_a_peak_that_always_lies_inside_is_not_sure():
    entry = {"method": "centred disc", "output": None, **dict.fromkeys(FIGURES, 1.0)}
    (found,) = cohort_overlap([{"overlap": [entry], "patient_id": f"p{place}"} for place in range(10)])
    assert found["pointing_2mm"]["low"] == pytest.approx(0.025**0.1)
    assert found["pointing_2mm"]["high"] == 1.0


def test_radial_profile_finds_where_a_map_lies(made, cohort):
    """A map that is positive on the nodule and negative elsewhere: the profile changes sign at the outline."""
    name = cohort.store.nodule_ids[0]
    crop = cohort.store.load(name)
    maps = made.maps(name, grid=32)
    planes = (crop.consensus[16], crop.consensus[:, 16], crop.consensus[:, :, 16])
    for place, mask in enumerate(planes):
        maps.relevance[place] = np.where(mask, 1.0, -0.5)
    curve = radial_curves(cohort.store, {name: maps}.get, [name])["margin"]
    assert (curve.loc[curve["distance_mm"] < 0, "mean"].dropna() == 1).all()
    assert (curve.loc[curve["distance_mm"] > 0, "mean"].dropna() == -0.5).all()


def test_galleries_pick_the_extremes():
    def row(name, probability, label, sd):
        prediction = None if probability is None else {"value": probability}
        return {"nodule_id": name, "label": label, "outputs": [{"prediction": prediction, "readers": {"sd": sd}}]}

    rows = [
        row("a", 0.9, 1, 0.1),
        row("b", 0.99, 1, 0.0),
        row("c", 0.8, 0, 0.5),
        row("d", 0.3, 1, 2.0),
        row("e", None, 1, 1.5),
    ]
    found = {gallery["title"]: [item["nodule_id"] for item in gallery["rows"]] for gallery in galleries(rows, size=2)}
    assert found == {"Surest and right": ["b", "a"], "Most wrong": ["c", "d"], "Most disagreed on": ["d", "e"]}


def test_cohort_without_anything_says_what_is_missing(made, tmp_path):
    store = made.store(tmp_path / "store", n=2)
    text = cohort_report(store, tmp_path / "out", pdf=False).index.read_text(encoding="utf-8")
    for phrase in ("This report is incomplete", "lidc-xai evaluate", "lidc-xai explain", "CLAIM"):
        assert phrase in text, phrase


def test_leaking_split_is_said(cohort, tmp_path):
    leaking = {**cohort.metrics, "leaks": True, "split": "paper"}
    predictions = cohort.predictions.assign(split_kind="paper")
    ids = cohort.store.nodule_ids[:2]
    result = cohort_report(cohort.store, tmp_path, predictions, leaking, nodule_ids=ids, pdf=False)
    text = result.index.read_text(encoding="utf-8")
    assert "These figures leak" in text
    assert "nodules of a patient are in several parts" in text
    assert "Seen in training" in (tmp_path / "nodules" / f"{ids[0]}.html").read_text(encoding="utf-8")


@pytest.fixture
def benchmark(tmp_path):
    """Results of three methods and a control on six cases, summarised by the benchmark's own functions."""
    from lidc_xai.evaluation.benchmark.tables import comparisons, figures, summarise

    rng = np.random.default_rng(0)
    rows = []
    for case in range(6):
        for method, level in (("cdam", 8.0), ("attention", 2.0), ("random", 0.0), ("centred_disc", 1.0)):
            common = {"case": f"c{case}", "plane": "axial", "cluster": f"p{case}", "group": "", "method": method,
                      "output": "malignancy", "note": ""}  # fmt: skip
            for metric in ("fidelity/area", "fidelity/area_mif", "fidelity/area_lif"):
                rows.append({**common, "metric": metric, "x": np.nan, "value": level + rng.normal(0, 0.1)})
            for x in (0.0, 50.0, 100.0):
                rows.append({**common, "metric": "fidelity/mif", "x": x, "value": level - x / 50})
    (tmp_path / "results" / "parts").mkdir(parents=True)
    pd.DataFrame(rows).to_parquet(tmp_path / "results" / "parts" / "all.parquet")
    per_case = figures(pd.DataFrame(rows))
    summarise(per_case, resamples=100).to_parquet(tmp_path / "results" / "summary.parquet")
    tested = comparisons(per_case, "fidelity/area", "malignancy", reference="cdam")
    tested.assign(metric="fidelity/area", output="malignancy").to_csv(tmp_path / "results" / "comparisons.csv")
    return tmp_path / "results"


def test_benchmark_report_ranks_and_draws(benchmark, tmp_path):
    result = benchmark_report(benchmark, tmp_path / "page", about=["A <model>."], seen=["p0", "p5", "other"], pdf=False)
    text = result.index.read_text(encoding="utf-8")
    told = json.loads((tmp_path / "page" / "benchmark.json").read_text())["verdict"]
    assert told[0] == "2 methods on 6 cases of 6 patients; 2 of these patients the model had seen in training."
    assert "CDAM and attention beat a centred disc" in told[1]
    # six patients: the smallest p of a sign-flip test is 2 / 2⁶, three comparisons make it .09
    assert told[2].startswith("CDAM leads; attention cannot be told from it")
    head = text.split("<table")[0]
    assert all(sentence in head for sentence in told)  # the verdict comes before any figure
    assert "A &lt;model&gt;." in text
    tables = json.loads((tmp_path / "page" / "benchmark.json").read_text())["tables"]
    correctness = next(table for table in tables if table["title"].startswith("Correctness"))
    rows = {row["method"]: row for row in correctness["rows"]}
    heading = [column["title"] for column in correctness["columns"]].index("A LIF − A MIF")
    assert rows["cdam"]["cells"][heading]["best"]
    assert rows["cdam"]["cells"][heading]["value"] == pytest.approx(8.0, abs=0.2)
    assert rows["centred_disc"]["control"]
    assert rows["random"]["control"]  # chance is never best of a column
    assert not any(cell["best"] for cell in rows["random"]["cells"])
    assert [rows[name]["chance"] for name in ("cdam", "attention", "random")] == ["yes", "yes", "no"]
    assert "<svg" in text
    assert "CDAM" in text
    assert "Fidelity: most important first" in text
    with pytest.raises(UsageError, match="holds no finished benchmark"):
        benchmark_report(tmp_path, tmp_path / "page2")


def test_image_sheet_shows_each_class_and_method(tmp_path):
    images = [np.zeros((40, 60, 3), np.uint8), np.ones((40, 60, 3))]
    rng = np.random.default_rng(0)
    found = {
        name: SimpleNamespace(relevance=rng.normal(size=(2, 2, 5, 7)), target_names=("cat", "<dog>"))
        for name in ("cdam", "attention")
    }
    path = image_sheet(images, found, tmp_path, names=["one", "two"], scores=[["p = .9", "p = .1"]] * 2)
    text = path.read_text(encoding="utf-8")
    assert text.count('<img class="map"') == 2 * 2 * 2
    assert "&lt;dog&gt;" in text
    assert "p\xa0=\xa0.9" in text
    assert "aspect-ratio: 60 / 40" in text
    with pytest.raises(UsageError, match="at least one method"):
        image_sheet(images, {}, tmp_path)


def test_chart_places_points_and_ticks():
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert limits([1, 3], [np.nan]) == pytest.approx((0.88, 3.12))
    chart = Chart((0, 10), (0, 1), "x <y>", "y", "label")
    chart.line([0, 5, 10], [0, np.nan, 1], "#000", "a & b")
    svg = str(chart.svg())
    assert "x &lt;y&gt;" in svg
    assert "a &amp; b" in svg
    start = f"M{chart.px(0):.1f} {chart.py(0):.1f}M{chart.px(10):.1f} {chart.py(1):.1f}"
    assert start in svg  # the gap breaks the line
    assert chart.px(10) > chart.px(0)
    assert chart.py(1) < chart.py(0)
    assert len(OUTPUTS) == 9


def test_the_verdict_claims_no_more_than_the_intervals_do():
    def figure(value):
        return {"value": value, "low": value - 0.03, "high": value + 0.03}

    both = {"nodules": 721, "accuracy": figure(0.888), "auc": figure(0.95)}
    row = {"metric": "auc", "b": "diameter_only"}
    metrics = {
        "split": "patient",
        "malignancy": {"all": both},
        "baselines": {name: {"malignancy": {"all": both}} for name in ("diameter_only", "own_diameter")},
        "comparisons": [
            {**row, "part": "all", "difference": 0.012, "low": -0.01, "high": 0.031, "p_holm": 1.0},
            {**row, "part": "8–12 mm", "difference": 0.151, "low": 0.066, "high": 0.232, "p_holm": 0.03},
        ],
    }
    first, second, third = cohort_verdict(metrics)
    assert first.startswith("On 721 nodules of patients it had not seen rated low or high, ")
    assert second == (
        "The readers’ diameter alone: 89 %; on all the model is not shown to be better (AUC +0.01 [−0.01, 0.03]), "
        "at 8–12 mm the model is better (AUC +0.15 [0.07, 0.23])."
    )
    metrics["comparisons"][1]["p_holm"] = 0.054
    assert "is better before correction for the number of comparisons, not after (AUC" in cohort_verdict(metrics)[1]
    assert third == "The diameter that the model itself predicts, alone: 89 %."
    assert "had not seen" not in cohort_verdict({**metrics, "split": "paper"})[0]
    assert cohort_verdict({}) == []
