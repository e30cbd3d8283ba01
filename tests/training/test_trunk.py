"""A cached trunk gives what the network gives, and refuses what it was not made for."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lidc_xai.data import PlaneDataset
from lidc_xai.data.dataset import TrainingPlanes
from lidc_xai.data.transforms import MovePlanes
from lidc_xai.data.trunk_cache import TrunkCache, TrunkPlanes
from lidc_xai.errors import DataError, LidcXaiError, UsageError
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.models import build_model, load_model
from lidc_xai.models.inference import view_outputs
from lidc_xai.models.lora import apply_adapter
from lidc_xai.models.trunk import after_trunk
from lidc_xai.training import FitOptions, fit
from lidc_xai.training.fitting import planes_for, prepare_model

Quick = Callable[..., FitOptions]
TURNS_ONLY = {"shift_pixels": 0, "shift_hu": 0, "slices": 3}
OUTPUTS = ("malignancy", "texture", "diameter")


def frozen(quick: Quick, folder: Path | None, **values: object) -> FitOptions:
    trunk = {"folder": None if folder is None else str(folder), "precision": values.pop("precision", "float32")}
    base = {"augment": TURNS_ONLY, "standardise": "fixed", "trainable_blocks": 2, "trunk": trunk, "views": ["axial"]}
    return quick(**{**base, **values})


def gradients(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("channels", ["repeat", "neighbours"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_outputs_and_gradients_of_a_batch_are_those_without_the_cache(
    precision: str, tolerance: float, channels: str, toy_store: CropStore, quick: Quick, tmp_path: Path
) -> None:
    options = frozen(quick, tmp_path / "trunk", loss={"mask_weight": 1.0}, channels=channels)
    data = planes_for(toy_store, toy_store.nodule_ids[:12], options)
    model = prepare_model(options, data, torch.arange(12)).eval()
    cache = TrunkCache(tmp_path / "trunk", model, data, 2, precision)
    wide = model.preprocess.planes_per_input
    plain = TrainingPlanes(data, range(12), options.augment, seed=3, channels=wide)
    kept = TrunkPlanes(cache, range(12), options.augment, seed=3, channels=wide)
    plain.epoch = kept.epoch = 5
    items = [(plain[i], kept[i]) for i in range(12)]
    batch = {name: torch.stack([item[name] for item, _ in items]) for name in ("image", "numbers", "mask")}
    moved = MovePlanes(model.preprocess.mean)(batch)
    image = moved["image"] if wide > 1 else moved["image"][:, 0]
    tokens, outputs = model.tokens_and_outputs(model.preprocess.apply(image))
    wanted = gradients(model, outputs.square().sum())
    again, found = after_trunk(model, torch.stack([item["tokens"] for _, item in items]).float(), cache.depth)
    got = gradients(model, found.square().sum())
    assert len({int(n) for n in batch["numbers"][:, 0]}) > 3
    for a, b in ((found, outputs), (again, tokens), (got, wanted)):
        assert float((a - b).norm() / b.norm()) < tolerance
    assert torch.equal(torch.stack([item["mask"] for _, item in items]).float(), moved["mask"])
    for turns in (1, 8):
        model.preprocess = model.preprocess.__class__(**{**model.preprocess.__dict__, "turns": turns, "slices": 3})
        rows = torch.tensor([4, 1])
        direct = view_outputs(model, model.preprocess.inputs(data.planes[rows]))
        assert float((cache.outputs(model, [4, 1]) - direct).norm() / direct.norm()) < tolerance


def test_training_on_the_cache_is_training(toy_store: CropStore, quick: Quick, tmp_path: Path) -> None:
    """In float32 a run on the cache ends at the model of one without it; a killed build goes on to the same bytes."""
    plain = fit(toy_store, None, options=frozen(quick, None, loss={"mask_weight": 0.5}))
    kept = fit(toy_store, None, options=frozen(quick, tmp_path / "trunk", loss={"mask_weight": 0.5}))
    assert kept.history["val_loss"].to_numpy() == pytest.approx(plain.history["val_loss"].to_numpy(), abs=1e-4)
    for name, tensor in plain.model.state_dict().items():
        assert torch.allclose(kept.model.state_dict()[name], tensor, atol=2e-4), name
    whole = (tmp_path / "trunk" / "tokens.bin").read_bytes()
    record = json.loads((tmp_path / "trunk" / "trunk.json").read_text())
    assert record["done"] == len(toy_store.nodule_ids)
    (tmp_path / "trunk" / "trunk.json").write_text(json.dumps({**record, "done": 17}))
    with (tmp_path / "trunk" / "tokens.bin").open("r+b") as file:  # what came after the last record is rubbish
        file.seek(len(whole) * 17 // 48 + 64)
        file.write(b"\x01" * 4096)
    fit(toy_store, None, options=frozen(quick, tmp_path / "trunk", loss={"mask_weight": 0.5}, seed=0))
    assert (tmp_path / "trunk" / "tokens.bin").read_bytes() == whole


def test_a_killed_run_on_the_cache_ends_with_the_same_bytes(
    toy_store: CropStore, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lidc_xai.training.loop.module import FitModule

    options = frozen(
        quick, tmp_path / "trunk", epochs=3, precision="float16", lora={"rank": 2}, turns_averaged=8,
        optimiser={"ema": 0.9, "layer_decay": 0.7}, model={"dropout": 0.1},
    )  # fmt: skip
    fit(toy_store, tmp_path / "whole", options=options)
    step = FitModule.training_step

    def dying(module: FitModule, batch: dict, number: int) -> torch.Tensor:
        if module.current_epoch == 2:
            raise InterruptedError
        return step(module, batch, number)

    with monkeypatch.context() as patched:
        patched.setattr(FitModule, "training_step", dying)
        with pytest.raises(InterruptedError):
            fit(toy_store, tmp_path / "killed", options=options)
    torch.rand(5)
    fit(toy_store, tmp_path / "killed", options=options)
    for name in ("model/weights.safetensors", "model/adapter.safetensors", "model/model.json", "history.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    model = load_model(tmp_path / "killed")
    assert (model.preprocess.turns, model.preprocess.mean) == (8, -630.0)
    # the adapter turns the weights that the run began with into its model, exactly
    base = build_model(**model.recipe, seed=options.seed)
    apply_adapter(base, model.adapter)
    assert all(torch.equal(base.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert model.adapter["backbone.blocks.5.attn.qkv.up"].abs().max() > 0
    assert "backbone.blocks.3.attn.qkv.up" not in model.adapter


def test_a_cache_of_something_else_is_refused(
    toy_store: CropStore, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trunk"
    data = PlaneDataset(toy_store, toy_store.nodule_ids[:6], OUTPUTS, views=["axial"], slices=3)

    def model(seed: int = 0, **preprocess: object) -> torch.nn.Module:
        made = build_model("vit_small64_p8", OUTPUTS, size=16, seed=seed)
        made.preprocess = made.preprocess.__class__(**{**made.preprocess.__dict__, "views": ("axial",), **preprocess})
        return made

    TrunkCache(folder, model(), data, 2)
    TrunkCache(folder, model(), PlaneDataset(toy_store, toy_store.nodule_ids[2:5], views=["axial"], slices=3), 2)
    with pytest.raises(UsageError, match="made with other weights"):
        TrunkCache(folder, model(seed=1), data, 2)
    with pytest.raises(UsageError, match=r"made with other preprocessing \(mean -630.0, now -600.0\)"):
        TrunkCache(folder, model(mean=-600.0), data, 2)
    with pytest.raises(UsageError, match="made with another number of blocks"):
        TrunkCache(folder, model(), data, 3)
    with pytest.raises(UsageError, match=r"trunk.folder .*trunk.json/x: cannot be made \(Not a directory\)"):
        TrunkCache(folder / "trunk.json" / "x", model(), data, 2)
    with pytest.raises(UsageError, match="made with another precision"):
        TrunkCache(folder, model(), data, 2, "float32")
    with pytest.raises(UsageError, match="products of another precision"):
        TrunkCache(folder, model(), data, 2, mixed=True)
    record = json.loads((folder / "trunk.json").read_text())
    (folder / "trunk.json").write_text(json.dumps(record | {"preprocess": record["preprocess"] | {"new": None}}))
    with pytest.raises(UsageError, match=r"other preprocessing \(new None, now None\)"):  # a field that one lacks
        TrunkCache(folder, model(), data, 2)
    (folder / "trunk.json").write_text(json.dumps(record))
    more = PlaneDataset(toy_store, toy_store.nodule_ids[:7], OUTPUTS, views=["axial"], slices=3)
    with pytest.raises(UsageError, match="made with other planes"):
        TrunkCache(folder, model(), more, 2)
    data.planes[2] += 1
    with pytest.raises(UsageError, match="made with other planes"):
        TrunkCache(folder, model(), data, 2)
    (folder / "trunk.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        TrunkCache(folder, model(), data, 2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="no cache of a trunk"):
        TrunkCache(tmp_path / "other", model(), data, 2)
    with pytest.raises(UsageError, match="no plain ViT"):
        TrunkCache(tmp_path / "cnn", build_model("resnet18", OUTPUTS, size=32), data, 2)
    monkeypatch.setattr("lidc_xai.data.trunk_cache.shutil.disk_usage", lambda path: type("D", (), {"free": 1000})())
    with pytest.raises(LidcXaiError, match=r"needs 0\.0 GB and 0\.0 GB are free"):
        TrunkCache(tmp_path / "full", model(), data, 2)


@pytest.mark.parametrize(("values", "words"), [
    ({"augment": {}}, "set augment"),
    ({"standardise": "training"}, "standardise 'fixed'"),
    ({"trainable_blocks": None}, "needs trainable_blocks"),
    ({"model": {"backbone_dropout": 0.1}}, "backbone_dropout 0"),
    ({"trainable_blocks": None, "trunk": {}, "lora": {"rank": 4}}, "lora.rank needs trainable_blocks"),
])  # fmt: skip
def test_options_that_do_not_go_with_a_cache_say_so(values: dict, words: str) -> None:
    base = {"augment": TURNS_ONLY, "standardise": "fixed", "trainable_blocks": 2, "trunk": {"folder": "x"}}
    with pytest.raises(UsageError, match=words):
        FitOptions.of(**{**base, **values})
