"""The model that comes with the package: small, loadable by name, honest on its card."""

import json
from pathlib import Path

import numpy as np
import pytest

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.imaging.crops.nodule_crop import NoduleCrop
from lidc_xai.models import load_model, shipped_models
from lidc_xai.models.saved import SHIPPED, member_folders
from lidc_xai.nodules._predict import predict
from lidc_xai.ratings import OUTPUTS


def test_the_ensemble_is_small_and_asks_for_the_weights_that_it_was_made_for() -> None:
    """Five folds: each patient of the out-of-fold figures is unknown to one of the members."""
    members = member_folders("lidc-dinov2")
    assert [path.name for path in members] == [f"member-{number}" for number in range(1, 6)]
    assert sum(path.stat().st_size for member in members for path in member.iterdir()) < 4 * 2**20
    for member in members:
        with pytest.raises(ModelError, match="adapter to the published weights of 'dinov2_vits14'"):
            load_model(member)
    knows = []
    for member in members:
        info = json.loads((member / "model.json").read_text(encoding="utf-8"))["training_info"]
        assert info["metrics"]["out of fold, auc"] > 0.9
        assert "/" not in info["store"] + str(info["options"]["trunk"]["folder"])
        knows.append({*info["train_patients"], *info["validation_patients"]})
    tested = set.union(*knows) - set.intersection(*knows)
    assert len(tested) == 442  # the patients of the out-of-fold figures; the others only taught
    assert all(sum(patient in known for known in knows) == 4 for patient in tested)
    with pytest.raises(UsageError, match="is an ensemble; give one of its members"):
        load_model("lidc-dinov2")


def test_the_shipped_model_is_small_and_says_what_it_is() -> None:
    assert shipped_models() == ["lidc-dinov2", "lidc-small"]
    folder = SHIPPED / "lidc-small"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12 * 2**20
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    for words in ("Research use only", "out of fold, auc", "CC BY 3.0", "10.7937/K9/TCIA.2015.LO9QL9SX"):
        assert words in card
    assert "/" not in load_model("lidc-small").training_info["store"]


def test_a_larger_nodule_is_read_as_larger_and_more_suspicious() -> None:
    model = load_model("lidc-small")
    assert set(model.output_names) == set(OUTPUTS)
    axis = np.arange(32) - 15.5
    distance = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    noise = np.random.default_rng(0).normal(0, 20, distance.shape)
    crops = [
        NoduleCrop((np.where(distance <= radius, 20.0, -850.0) + noise).astype(np.float32), np.eye(4), nodule_id=name)
        for name, radius in (("OWN-1-s1-n0", 2.5), ("OWN-2-s1-n0", 11.0))
    ]
    small, large = predict(model, crops).to_dict("records")
    assert small["diameter"] < 10 < 16 < large["diameter"]
    assert small["malignancy_probability"] < 0.3 < 0.7 < large["malignancy_probability"]


def test_an_unknown_name_is_told_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no such model folder \(shipped: lidc-dinov2, lidc-small\)"):
        load_model(tmp_path / "lidc-large")
