"""Fine-tuning as the field does it: each piece against its definition."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.models import build_model, load_model, save_model
from lidc_xai.models.inference import turned
from lidc_xai.models.lora import add_lora, apply_adapter, merge_lora
from lidc_xai.nodules import explain_nodules, nodule_images, predict
from lidc_xai.training import FitOptions, fit
from lidc_xai.training.loop.module import MovingAverage
from lidc_xai.training.loop.optimiser import build_optimiser, choose_trainable
from lidc_xai.training.options import OptimiserOptions

Quick = Callable[..., FitOptions]


def test_each_block_learns_at_a_share_of_the_rate_of_the_one_after_it() -> None:
    model = build_model("vit_small64_p8", size=16)
    optimiser = build_optimiser(model, OptimiserOptions(lr=1.0, layer_decay=0.5))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rate = {names[id(p)]: group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert set(rate) == set(names.values())
    assert rate["head.weight"] == rate["backbone.norm.bias"] == 1.0
    for block in range(6):
        assert rate[f"backbone.blocks.{block}.mlp.fc1.weight"] == 0.5 ** (6 - block)
    assert rate["backbone.pos_embed"] == rate["backbone.patch_embed.proj.weight"] == 0.5**7
    decayed = {names[id(p)] for g in optimiser.param_groups if g["weight_decay"] for p in g["params"]}
    assert all(name.endswith("weight") for name in decayed)
    muon = build_optimiser(model, OptimiserOptions(name="muon", muon_lr=2.0, layer_decay=0.5))
    rate = {names[id(p)]: group["lr"] for group in muon.param_groups for p in group["params"]}
    assert rate["backbone.blocks.4.mlp.fc1.weight"] == 2.0 * 0.25


def test_moving_average_follows_its_recursion_and_leaves_the_weights_alone() -> None:
    layer = torch.nn.Linear(2, 1)
    average, wanted = MovingAverage(layer, 0.9), layer.weight.detach().clone()
    for step in range(1, 30):
        with torch.no_grad():
            layer.weight += torch.randn(1, 2)
        average.update(layer, step)
        average.update(layer, step)  # a step counts once
        d = min(0.9, (1 + step) / (10 + step))
        wanted = d * wanted + (1 - d) * layer.weight.detach()
    own = layer.weight.detach().clone()
    with average.in_place(layer):
        assert torch.allclose(layer.weight, wanted, atol=1e-5)
    assert torch.equal(layer.weight, own)


def test_the_averaged_weights_are_what_is_judged_and_kept(toy_store: CropStore, quick: Quick) -> None:
    plain = fit(toy_store, None, options=quick(epochs=1)).model.state_dict()
    kept = fit(toy_store, None, options=quick(epochs=1, optimiser={"ema": 0.99}))
    assert not torch.equal(kept.model.state_dict()["head.weight"], plain["head.weight"])


def test_lora_starts_as_the_base_learns_little_and_merges_exactly(tmp_path: Path) -> None:
    model = build_model("vit_small64_p8", ["malignancy", "margin"], size=16, seed=0).double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    before, base = model(images).detach(), {n: t.clone() for n, t in model.state_dict().items()}
    count = choose_trainable(model, FitOptions(trainable_blocks=2, lora={"rank": 3, "alpha": 6}))
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert count == len(learning) == 2 * 4 * 2 + 2 + 2  # down and up of four matrices of two blocks, norm, head
    assert torch.equal(model(images), before)
    with torch.no_grad():
        for parameter in learning.values():
            parameter += 0.05 * torch.randn_like(parameter)
    layer = model.backbone.blocks[4].mlp.fc1
    update = layer.parametrizations.weight[0]
    by_hand = layer.parametrizations.weight.original + 6 / 3 * update.up @ update.down
    assert torch.allclose(layer.weight, by_hand, atol=1e-14)
    tuned = model(images).detach()
    model.adapter = merge_lora(model)
    assert type(layer) is torch.nn.Linear
    assert torch.allclose(model(images), tuned, atol=1e-12)
    assert torch.equal(model.backbone.blocks[3].mlp.fc1.weight, base["backbone.blocks.3.mlp.fc1.weight"])
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert torch.equal(again(images), model(images))
    fresh = build_model("vit_small64_p8", ["malignancy", "margin"], size=16).double()
    fresh.load_state_dict(base)
    apply_adapter(fresh, again.adapter)
    assert torch.equal(fresh(images), model(images))
    with pytest.raises(UsageError, match="does not fit"):
        apply_adapter(build_model("vit_small64_p8", ["malignancy"], size=16).double(), again.adapter)
    with pytest.raises(UsageError, match="needs a ViT"):
        add_lora(build_model("resnet18", size=32), 2, 4, 8)


def test_outputs_and_maps_averaged_over_turns_do_not_depend_on_how_the_nodule_lies(toy_store: CropStore) -> None:
    model = build_model("vit_small64_p8", ["malignancy", "margin"], size=16, seed=0)
    model.preprocess = replace(model.preprocess, turns=8, views=("axial",))
    crop = toy_store.load(toy_store.nodule_ids[3])
    lying = replace(crop, ct=np.ascontiguousarray(np.rot90(crop.ct, 1, (1, 2))[:, :, ::-1]))
    rows = [predict(model, one).iloc[0] for one in (crop, lying)]
    assert rows[0]["malignancy_logit"] == pytest.approx(rows[1]["malignancy_logit"], abs=1e-5)
    with torch.inference_mode():
        each = torch.stack([model(nodule_images(model, crop, turn=turn))[0] for turn in range(8)])
    assert each[:, 0].std() > 1e-3
    assert rows[0]["malignancy_logit"] == pytest.approx(float(each[:, 0].mean()), abs=1e-5)
    maps, other = (next(iter(explain_nodules(model, [one], ["cdam", "saliency"]))) for one in (crop, lying))
    for method, found in maps.items():
        assert found.values[0] == pytest.approx(each.mean(0).numpy(), abs=1e-5)
        wanted = turned(torch.from_numpy(found.relevance), 5).numpy()
        np.testing.assert_allclose(other[method].relevance, wanted, atol=1e-5 * np.abs(wanted).max() + 1e-7)


def test_a_model_of_neighbouring_slices_reads_them_everywhere(
    toy_store: CropStore, quick: Quick, tmp_path: Path
) -> None:
    fit(toy_store, tmp_path / "run", options=quick(epochs=1, channels="neighbours", slices_averaged=3))
    model = load_model(tmp_path / "run")
    assert (model.preprocess.channels, model.preprocess.slices, model.preprocess.planes_read) == ("neighbours", 3, 5)
    name = toy_store.nodule_ids[0]
    ct = torch.from_numpy(toy_store.load(name).ct.copy())
    views = [ct, ct.transpose(0, 1), ct.permute(2, 0, 1)]
    stacks = torch.stack([view[k - 1 : k + 2] for view in views for k in (7, 8, 9)])
    with torch.inference_mode():
        wanted = model(model.preprocess.apply(stacks)).mean(0)
    found = predict(model, toy_store, nodule_ids=[name]).iloc[0]
    assert found["malignancy_logit"] == pytest.approx(float(wanted[0]), abs=1e-5)
    images = nodule_images(model, toy_store.load(name), ["axial"])
    assert torch.equal(images[0], model.preprocess.apply(ct[7:10]))
    assert torch.allclose(model.preprocess.to_hu(images)[0], ct[8].clamp(-1000, 400), atol=1e-3)


def test_mixed_precision_learns_on_the_cache(toy_store: CropStore, quick: Quick, tmp_path: Path) -> None:
    options = quick(
        epochs=1, precision="bf16-mixed", augment={"shift_pixels": 0, "shift_hu": 0}, standardise="fixed",
        trainable_blocks=1, trunk={"folder": str(tmp_path / "trunk")}, loss={"mask_weight": 1.0},
    )  # fmt: skip
    assert np.isfinite(fit(toy_store, None, options=options).history["train_loss"]).all()


def test_a_model_saved_as_an_adapter_needs_the_weights_that_it_was_made_for(
    toy_store: CropStore, quick: Quick, tmp_path: Path
) -> None:
    for name, seed in (("base", 5), ("other", 6)):
        network = build_model("vit_small64_p8", size=16, seed=seed).backbone
        save_file(dict(network.state_dict()), tmp_path / f"{name}.safetensors")
    weights = {"weights": str(tmp_path / "base.safetensors")}
    options = quick(
        epochs=1, model=weights, trainable_blocks=2, lora={"rank": 2}, channels="neighbours", turns_averaged=8
    )  # fmt: skip
    model = fit(toy_store, tmp_path / "run", options=options).model
    assert "repeated" not in (tmp_path / "run" / "model" / "MODEL_CARD.md").read_text()
    folder = save_model(load_model(tmp_path / "run"), tmp_path / "adapter", adapter_only=True)
    assert {path.name for path in folder.iterdir()} == {"adapter.safetensors", "model.json", "MODEL_CARD.md", "LICENSE"}
    again = load_model(folder, weights=tmp_path / "base.safetensors")
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(again(images), model(images), atol=2e-3)
    assert (again.calibration, again.preprocess) == (model.calibration, model.preprocess)
    for member in (1, 2):
        shutil.copytree(folder, tmp_path / "ensemble" / f"member-{member}")
    ids, base = toy_store.nodule_ids[:2], tmp_path / "base.safetensors"
    both = predict(tmp_path / "ensemble", toy_store, nodule_ids=ids, weights=base)
    alone = predict(folder, toy_store, nodule_ids=ids, weights=base)
    assert both["n_models"].tolist() == [2, 2]
    assert both["malignancy_logit"].to_numpy() == pytest.approx(alone["malignancy_logit"].to_numpy(), abs=1e-6)
    with pytest.raises(UsageError, match=r"is an ensemble; give one of its members \(ensemble/member-1\)"):
        load_model(tmp_path / "ensemble", weights=base)
    with pytest.raises(ModelError, match="which do not come with it"):
        load_model(folder)
    with pytest.raises(ModelError, match="not the weights of 'vit_small64_p8' that adapter was made for"):
        load_model(folder, weights=tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="no such weights file"):
        load_model(folder, weights=tmp_path / "absent.safetensors")
    with pytest.raises(UsageError, match="leave weights out"):
        load_model(tmp_path / "run", weights=tmp_path / "base.safetensors")
    with pytest.raises(UsageError, match="fine-tuned by LoRA"):
        save_model(build_model("vit_small64_p8", size=16), tmp_path / "x", adapter_only=True)
    data = (folder / "adapter.safetensors").read_bytes()
    (folder / "adapter.safetensors").write_bytes(data[:-8])
    with pytest.raises(ModelError, match="damaged or replaced"):
        load_model(folder, weights=tmp_path / "base.safetensors")
