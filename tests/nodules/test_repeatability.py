"""A cohort's repeatability: the table against a naive reference, its controls, and who may explain whom."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from maps_across_seeds import faithfulness, masked_copies
from scipy.stats import spearmanr

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation import fidelity
from lidc_xai.evaluation.repeatability import disjoint_groups
from lidc_xai.imaging import CropStore, NoduleCrop, StoreWriter
from lidc_xai.models import build_model
from lidc_xai.nodules import explain_nodules, map_repeatability, nodule_case, with_random_head
from lidc_xai.nodules.repeatability import agreement_rows, resampled_mean

OUTPUTS = ("malignancy", "margin")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CropStore:
    rng = np.random.default_rng(0)
    nodule = np.zeros((16, 16, 16), bool)
    nodule[6:10, 6:10, 6:10] = True
    writer = StoreWriter(tmp_path_factory.mktemp("repeat") / "store", size_mm=16, spacing_mm=1, rule="test")
    for n in range(4):
        name = f"LIDC-IDRI-000{n}-s1-n0"
        ct = rng.normal(-700, 200, (16, 16, 16)).astype(np.float32)
        crop = NoduleCrop(ct, np.eye(4), nodule[None], nodule, nodule_id=name)
        writer.write(crop, {"patient_id": f"LIDC-IDRI-000{n}"}, [])
    return writer.finish()


def models(count: int) -> list:
    return [build_model("vit_nodule_p8", OUTPUTS, size=16, seed=seed) for seed in range(count)]


def test_the_table_against_a_naive_reference(store: CropStore, tmp_path: Path) -> None:
    each = models(4)
    table = map_repeatability(each, store, "cdam", folder=tmp_path, resamples=200).set_index(["maps", "output", "k"])
    maps = np.array([[m["cdam"].relevance for m in explain_nodules(model, store)] for model in each]).astype(float)
    for column, output in enumerate(OUTPUTS):
        flat = maps[:, :, :, column].reshape(4, 4, -1)
        for k in (1, 2):
            values, sizes, same = [], [], []
            for first in combinations(range(4), k):
                for second in combinations(range(4), k):
                    if first < second and not set(first) & set(second):
                        for n in range(4):
                            a, b = flat[list(first), n], flat[list(second), n]
                            values.append(spearmanr(a.mean(0), b.mean(0)).statistic)
                            sizes.append(spearmanr(np.abs(a).mean(0), np.abs(b).mean(0)).statistic)
                            x, y = (maps[list(some), n].mean(0).swapaxes(0, 1) for some in (first, second))
                            ranks = np.array([[spearmanr(p, q, axis=None).statistic for q in y] for p in x])
                            same += [ranks[column].argmax() == column, ranks[:, column].argmax() == column]
            row = table.loc[("models", output, k)]
            assert row["agreement"] == pytest.approx(np.mean(values), abs=1e-9)
            assert row["absolute"] == pytest.approx(np.mean(sizes), abs=1e-9)
            assert row["mean_abs"] == pytest.approx(np.mean(np.abs(values)), abs=1e-9)
            assert row["identified"] == pytest.approx(np.mean(same), abs=1e-9)
            assert row["identified_low"] <= row["identified"] <= row["identified_high"]
            assert row["low"] <= row["agreement"] <= row["high"]
    single = table.loc[("models", "all", 1)]
    assert single["agreement"] == pytest.approx(
        table.loc["models"].loc[list(OUTPUTS)].xs(1, level="k")["agreement"].mean()
    )
    double = table.loc[("models", "all", 2)]
    assert double["expected"] == pytest.approx(2 * single["agreement"] / (1 + single["agreement"]))
    assert set(table.index.get_level_values("maps")) == {"models", "random heads", "random weights"}
    assert table.loc[("random heads", "all", 1), "agreement"] < 0.99, "every run has a random head of its own"
    assert table.loc[("random weights", "all", 1), "agreement"] < 0.99
    written = {path.name for path in tmp_path.iterdir()}
    assert {"models-1", "random-heads-4", "random-weights-2"} <= written
    again = map_repeatability(each, store, "cdam", folder=tmp_path, resamples=200).set_index(["maps", "output", "k"])
    assert again.equals(table)


def test_faithfulness_of_the_mean_map_by_the_model_and_by_its_copy(store: CropStore, tmp_path: Path) -> None:
    each = models(3)
    map_repeatability(each, store, "cdam", folder=tmp_path, resamples=10)
    ids = store.manifest["nodule_id"].tolist()[:2]
    rows = list(faithfulness([[model] for model in each], store, ids, tmp_path, "cdam", masked=each[1:]))
    assert [(row["run"], "masked_mean" in row) for row in rows] == [(0, True), (1, True), (2, False)] * 2
    maps = [next(iter(explain_nodules(model, store)))["cdam"] for model in each]
    explained = [item.relevance[:, 0] for item in maps]
    case = nodule_case(each[1], store, ids[0], maps[1].views, {})
    asked = {"replacement": "lung", "masks": case.masks, "parenchyma": case.parenchyma, "points": 11}
    half = {**asked, "model_masked": each[2], "up_to": 50.0}
    for name, scores in (("single", explained[1]), ("mean", np.mean(explained, axis=0))):
        scores = torch.from_numpy(scores)
        for read_by, options in (("", asked), ("masked_", half)):
            area = fidelity(each[1], case.images, scores, "malignancy", **options).area.mean()
            assert rows[1][f"{read_by}{name}"] == pytest.approx(float(area), abs=1e-5)
    with pytest.raises(UsageError, match="is no copy"):
        masked_copies(["lidc-small"], [[each[0]]])
    with pytest.raises(UsageError, match="names 2 models"):
        masked_copies(["a", "b"], [[each[0]]])
    assert rows[1]["single"] != pytest.approx(rows[1]["masked_single"], abs=1e-3)


def test_a_random_head_shares_the_trunk() -> None:
    (model,) = models(1)
    first, second = with_random_head(model, 0), with_random_head(model, 1)
    assert first.backbone is model.backbone
    weights = [next(one.head.parameters()) for one in (model, first, second)]
    assert not any(np.allclose(a.detach(), b.detach()) for a, b in combinations(weights, 2))
    assert np.allclose(next(with_random_head(model, 0).head.parameters()).detach(), weights[1].detach())


def test_agreement_of_random_heads_is_zero_by_symmetry() -> None:
    """Maps linear in the head: a random sign for every model, whatever the map."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal(64)
    nodules = [(("margin",), (rng.choice([-1, 1], (8, 1, 1)) * (base + 0.3 * rng.standard_normal((8, 1, 64)))))
               for _ in range(60)]  # fmt: skip
    (single, *_) = agreement_rows(iter(nodules), [f"P{n}" for n in range(60)], 400, 0)
    assert single["low"] < 0 < single["high"]
    assert single["mean_abs"] > 0.8
    assert single["absolute"] > 0.6


def test_intervals_resample_models_and_patients() -> None:
    rng = np.random.default_rng(2)
    pairs = [((a,), (b,)) for a, b in combinations(range(6), 2)]
    by_pair = rng.standard_normal(len(pairs))
    same = np.tile(by_pair, (50, 1))  # the noise lies in the pairs of models: patients alone would give no width
    mean, low, high = resampled_mean(same, pairs, 6, [f"P{n}" for n in range(50)], 500, 0)
    assert mean == pytest.approx(by_pair.mean())
    assert high - low > 0.3
    by_patient = np.tile(rng.standard_normal((50, 1)), (1, len(pairs)))
    _, low, high = resampled_mean(by_patient, pairs, 6, [f"P{n}" for n in range(50)], 500, 0)
    assert high - low == pytest.approx(2 * 1.96 * by_patient[:, 0].std() / np.sqrt(50), rel=0.2)
    _, low, high = resampled_mean(same, pairs, 6, ["P"] * 50, 500, 0)
    assert np.isfinite([low, high]).all()


def test_a_pair_of_groups_weighs_as_the_product_of_its_models() -> None:
    """Draw by draw: models and patients are drawn with replacement, and every drawn pair counts once."""
    pairs = [((0,), (1,)), ((0,), (2,)), ((1,), (2,))]
    values = np.random.default_rng(3).normal(size=(4, 3))
    patients = ["B", "A", "C", "A"]
    rng = np.random.default_rng(7)
    of_patients, of_models = rng.multinomial(3, [1 / 3] * 3, 300), rng.multinomial(3, [1 / 3] * 3, 300)
    means = []
    for counts, models_drawn in zip(of_patients, of_models, strict=True):
        drawn = [
            values[row, place]
            for row, patient in enumerate(patients) for place, ((a,), (b,)) in enumerate(pairs)
            for _ in range(counts["BAC".index(patient)] * models_drawn[a] * models_drawn[b])
        ]  # fmt: skip
        means += [np.mean(drawn)] if drawn else []
    mean, low, high = resampled_mean(values, pairs, 3, patients, 300, 7)
    assert (mean, low, high) == pytest.approx((values.mean(), *np.quantile(means, [0.025, 0.975])))


def test_groups_that_draws_of_models_rarely_hold_vary_by_patient_alone() -> None:
    """Five of ten: one draw in 2755 holds all ten, so that a handful of draws would be the interval."""
    pairs = disjoint_groups(10, 5)
    values = np.random.default_rng(0).normal(0.5, 0.2, (60, len(pairs)))
    mean, low, high = resampled_mean(values, pairs, 10, [f"P{n}" for n in range(60)], 1000, 0)
    assert low < mean < high
    assert high - low == pytest.approx(2 * 1.96 * values.mean(1).std() / np.sqrt(60), rel=0.15)


def test_only_nodules_that_no_training_saw(store: CropStore) -> None:
    each = models(3)
    each[1].training_info = {"train_patients": ["LIDC-IDRI-0001"], "validation_patients": ["LIDC-IDRI-0002"]}
    table = map_repeatability(each, store, controls=(), resamples=20)
    assert set(table["nodules"]) == {2}
    folds = build_model("vit_nodule_p8", OUTPUTS, size=16, seed=7)
    folds.training_info = {"train_patients": ["LIDC-IDRI-0003"]}
    table = map_repeatability([each[0], [each[1], folds]], store, controls=(), resamples=20)
    assert set(table["nodules"]) == {4}  # of the second run, another fold explains where the first knows
    each[1].training_info = {"train_patients": [f"LIDC-IDRI-000{n}" for n in range(4)]}
    with pytest.raises(DataError, match="known to a training"):
        map_repeatability(each[:2], store, controls=())


def test_what_is_refused(store: CropStore) -> None:
    first, second = models(2)
    with pytest.raises(UsageError, match="two trainings or more"):
        map_repeatability([first], store)
    with pytest.raises(UsageError, match="not another training"):
        map_repeatability([first, second, *models(1)], store)
    with pytest.raises(UsageError, match="choose from random heads, random weights"):
        map_repeatability([first, second], store, controls=["labels"])
