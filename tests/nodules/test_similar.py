"""Similar nodules: other patients, nearest by the model's features, and measured against those of the same size."""

import numpy as np
import pytest
import torch
from similar_gain import similarity_gain
from torch import nn

from lidc_xai.errors import UsageError
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.imaging.store.crop_store import CropStore, StoreWriter
from lidc_xai.models import build_model
from lidc_xai.nodules import similar, similar_nodules
from lidc_xai.nodules.similar import differs_in_words, mean_ratings, nodule_features
from lidc_xai.ratings import READER_RATINGS


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> CropStore:
    """Twelve patients with two nodules each; grey level says the rating (1 to 4), size says nothing about it."""
    rng = np.random.default_rng(0)
    writer = StoreWriter(tmp_path_factory.mktemp("similar") / "store", size_mm=16, spacing_mm=1, rule="test")
    for number in range(24):
        rating = number % 4 + 1
        level = np.full((16, 16, 16), -1000.0 + 300 * rating, np.float32)
        crop = NoduleCrop(level, np.eye(4), nodule_id=f"n{number:02d}")
        crop.ct += rng.normal(0, 5, crop.ct.shape).astype(np.float32)
        common = {"nodule_id": crop.nodule_id, **dict.fromkeys(READER_RATINGS, rating), "calcification": 6}
        votes = [
            {**common, "reader": reader, "annotation_id": reader, "diameter_mm": float(rng.uniform(5, 30))}
            for reader in (1, 2, 3)
        ]
        writer.write(crop, {"patient_id": f"p{number // 2:02d}", "n_readers": 3}, votes)
    return writer.finish()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model("vit_nodule_p8", ["malignancy"], size=16, seed=0)


def test_neighbours_are_of_other_patients_and_nearest_first(store, model):
    found = similar_nodules(model, store, count=3)
    patients = store.manifest.set_index("nodule_id")["patient_id"]
    features = nodule_features(model, store, store.nodule_ids)
    scaled = (features - features.mean(0)) / np.where(features.std(0) > 0, features.std(0), 1)
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    for row, (name, near) in enumerate(found.items()):
        assert all(one["patient_id"] != patients[name] for one in near)
        allowed = [k for k, other in enumerate(store.nodule_ids) if patients[other] != patients[name]]
        wanted = sorted((float(unit[row] @ unit[k]) for k in allowed), reverse=True)[:3]
        assert [one["similarity"] for one in near] == pytest.approx(wanted, abs=1e-4)


def test_neighbours_are_closer_in_ratings_than_those_of_the_same_size(store, model):
    gain = similarity_gain(store, similar_nodules(model, store, count=3))
    assert gain["nodules"] == 24
    assert gain["difference"].high < 0  # grey level carries the rating, size does not
    assert gain["by_model"].mean < 0.2 < gain["by_size"].mean
    assert set(gain["by_rating"]) == {*similar.COMPARED, "calcified"} - {"diameter"}
    margin = gain["by_rating"]["margin"]
    ratings = mean_ratings(store)["margin"]
    apart = [
        abs(ratings[name] - ratings[one["nodule_id"]]) / ratings.std(ddof=0)
        for name, near in similar_nodules(model, store, count=3).items()
        for one in near
    ]
    assert margin["by_model"].mean == pytest.approx(np.mean(apart))
    assert margin["difference"].high < 0
    assert gain["by_rating"]["calcified"]["difference"].mean == 0.0  # nobody saw any


def test_what_differs_is_said_against_the_models_values(store, model):
    import pandas as pd

    ids = store.nodule_ids[:1]
    said = pd.DataFrame([{"nodule_id": ids[0], "margin": 5.0, "diameter": 4.0, "p_calcified": 0.9}])
    (near,) = similar_nodules(model, store, ids, count=1, predictions=said).values()
    ratings = mean_ratings(store).loc[near[0]["nodule_id"]]
    assert near[0]["differs"]["margin"] == pytest.approx(ratings["margin"] - 5.0)
    assert near[0]["calcified"] == 0.0
    words = differs_in_words(near[0])
    assert "more poorly defined" in words
    assert f"larger by {ratings['diameter'] - 4:.0f} mm" in words


def test_without_rated_nodules_there_is_nothing_to_show(store, model, tmp_path):
    writer = StoreWriter(tmp_path / "own", size_mm=16, spacing_mm=1, rule={"source": "points"})
    ct = np.linspace(-900, 100, 16**3, dtype=np.float32).reshape(16, 16, 16)
    writer.write(NoduleCrop(ct, np.eye(4), nodule_id="mine"), {"patient_id": "me"}, [])
    own = writer.finish()
    with pytest.raises(UsageError, match="holds 0 rated nodules"):
        similar_nodules(model, own)
    with torch.inference_mode():
        assert len(similar_nodules(model, own, reference=store)["mine"]) == 5


def test_features_are_kept_by_weights_and_batched_alike(store, model, tmp_path, monkeypatch):
    one_by_one = nodule_features(model, store, store.nodule_ids, batch_size=1)
    together = nodule_features(model, store, store.nodule_ids, cache=tmp_path, batch_size=5)
    assert np.allclose(together, one_by_one, atol=1e-5)
    (path,) = tmp_path.glob("features-*.npz")
    monkeypatch.setattr(similar, "_read_features", lambda *_: pytest.fail("read again"))
    assert np.array_equal(nodule_features(model, store, store.nodule_ids[::-1], cache=tmp_path), together[::-1])
    monkeypatch.undo()
    path.write_bytes(b"half of a file")
    assert np.allclose(nodule_features(model, store, store.nodule_ids[:2], cache=tmp_path), together[:2], atol=1e-5)
    nodule_features(build_model("vit_nodule_p8", ["malignancy"], size=16, seed=1), store, ["n00"], cache=tmp_path)
    assert len(list(tmp_path.glob("features-*.npz"))) == 2  # of other weights: not mixed


def test_of_several_models_those_that_never_saw_the_patient_compare(store):
    first, second = (build_model("vit_nodule_p8", ["malignancy"], size=16, seed=seed) for seed in (0, 1))
    first.training_info, second.training_info = {"train_patients": ["p00"]}, {"train_patients": ["p01"]}
    both = similar_nodules([first, second], store, ["n00", "n02", "n06"], count=23)
    alone = [similar_nodules(one, store, ["n00", "n02", "n06"], count=23) for one in (first, second)]
    assert both["n00"] == alone[1]["n00"]  # the first was trained on p00
    assert both["n02"] == alone[0]["n02"]
    mean = {
        one["nodule_id"]: (one["similarity"] + other["similarity"]) / 2
        for one in alone[0]["n06"]
        for other in alone[1]["n06"]
        if one["nodule_id"] == other["nodule_id"]
    }
    assert {one["nodule_id"]: one["similarity"] for one in both["n06"]} == pytest.approx(mean, abs=1e-6)
