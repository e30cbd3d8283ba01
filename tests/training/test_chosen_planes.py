"""What a run learns from beyond plain planes and labels: chosen views, other nodules, soft labels, readers' masks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lidc_xai.data import PlaneDataset
from lidc_xai.errors import UsageError
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.models import build_model, load_model
from lidc_xai.nodules._predict import predict
from lidc_xai.training import FitOptions, cross_validate, fit
from lidc_xai.training.loop.losses import MaskHead
from lidc_xai.training.loop.module import with_soft_labels

Quick = Callable[..., FitOptions]


def test_the_model_remembers_what_it_read_and_predict_reads_the_same(
    toy_store: CropStore, quick: Quick, tmp_path: Path
) -> None:
    options = quick(epochs=1, views=["axial", "sagittal"], slices_averaged=3)
    fit(toy_store, tmp_path / "run", options=options)
    model = load_model(tmp_path / "run")
    assert (model.preprocess.views, model.preprocess.slices) == (("axial", "sagittal"), 3)
    name = toy_store.nodule_ids[0]
    ct = torch.from_numpy(toy_store.load(name).ct.copy())
    middle = ct.shape[0] // 2
    planes = [ct[k] for k in range(middle - 1, middle + 2)] + [ct[:, :, i] for i in range(middle - 1, middle + 2)]
    with torch.inference_mode():
        wanted = model(model.preprocess.apply(torch.stack(planes))).mean(0)
    found = predict(model, toy_store, nodule_ids=[name]).iloc[0]
    assert found["malignancy_logit"] == pytest.approx(float(wanted[0]), abs=1e-5)


def test_mask_head_is_the_mean_cross_entropy_against_the_share_of_each_patch() -> None:
    model = build_model("vit_small64_p8", ["malignancy"], size=16, seed=0)
    head = MaskHead(model).double()
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(3, 5, 192, generator=generator, dtype=torch.float64)
    masks = (torch.rand(3, 16, 16, generator=generator, dtype=torch.float64) > 0.6).double()
    losses = []
    for image in range(3):
        for row in range(2):
            for column in range(2):
                share = masks[image, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].mean()
                p = torch.sigmoid(head.linear(tokens[image, 1 + 2 * row + column]))[0]
                losses.append(-(share * p.log() + (1 - share) * (1 - p).log()))
    assert head(tokens, masks).item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-12)


def test_masks_shape_the_training_and_leave_no_trace_in_the_saved_model(
    toy_store: CropStore, quick: Quick, tmp_path: Path
) -> None:
    ids = {"train_ids": toy_store.nodule_ids[:32], "validation_ids": toy_store.nodule_ids[32:]}
    plain = fit(toy_store, None, options=quick(epochs=1), **ids).model
    helped = fit(toy_store, tmp_path / "run", options=quick(epochs=1, loss={"mask_weight": 1.0}), **ids).model
    assert plain.state_dict().keys() == helped.state_dict().keys() == load_model(tmp_path / "run").state_dict().keys()
    weight = "backbone.blocks.0.mlp.fc1.weight"
    assert not torch.equal(plain.state_dict()[weight], helped.state_dict()[weight])


def test_mask_head_needs_patches(toy_store: CropStore, quick: Quick) -> None:
    options = quick(epochs=1, model={"backbone": "resnet18", "size": 32}, loss={"mask_weight": 1.0})
    with pytest.raises(UsageError, match=r"mask_weight needs a ViT.*'resnet18'"):
        fit(toy_store, None, options=options)


def test_soft_labels_stand_where_there_is_no_label(toy_store: CropStore) -> None:
    model = build_model("vit_small64_p8", ["texture", "malignancy"], size=16, seed=0)
    manifest = toy_store.manifest.head(3).assign(malignancy=[2.5, 3.25, 5.0])
    data = PlaneDataset(toy_store, toy_store.nodule_ids[:3], model.output_names, manifest=manifest)
    targets = torch.tensor([[0.1, float("nan")], [0.2, 1.0], [0.3, float("nan")]])
    found = with_soft_labels(targets, data, model)
    assert torch.allclose(found, torch.tensor([[0.1, 0.375], [0.2, 1.0], [0.3, 1.0]]))
    assert torch.isnan(targets[0, 1])


def test_other_nodules_teach_but_are_not_tested(
    toy_store: CropStore, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One nodule of each of the first 16 patients is the cohort; the rest may teach, never of a patient set aside."""
    manifest = toy_store.manifest
    cohort = manifest.drop_duplicates("patient_id").head(16)
    monkeypatch.setattr(
        "lidc_xai.training.cross_validation.select_cohort", lambda name: pd.DataFrame(cohort[["nodule_id"]])
    )
    options = quick(epochs=1, validation_share=0.34)
    found = cross_validate(
        toy_store, tmp_path / "cv", options=options, n_folds=2, cohort="all862", also_train=True, final=False,
        resamples=20,
    )  # fmt: skip
    assert sorted(found.predictions["nodule_id"]) == sorted(cohort["nodule_id"])
    for fold, rows in found.predictions.groupby("fold"):
        info = load_model(tmp_path / "cv" / f"fold-{fold}").training_info
        assert not set(info["train_patients"]) & {*rows["patient_id"], *info["validation_patients"]}
        outside = set(manifest["patient_id"]) - set(cohort["patient_id"])
        assert outside <= set(info["train_patients"])
        learned = manifest["patient_id"].isin(info["train_patients"])
        assert info["train_nodules"] == int(np.sum(learned))


def test_also_train_needs_a_cohort(toy_store: CropStore, quick: Quick, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="also_train needs a cohort"):
        cross_validate(toy_store, tmp_path / "cv", options=quick(), also_train=True)
