"""A run from store to saved model: it learns, it continues to the same bytes, and it refuses what cannot be learned
from.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from lidc_xai.commands.training import TrainConfig, train
from lidc_xai.data import PlaneDataset
from lidc_xai.errors import DataError, LidcXaiError, ModelError, UsageError
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.models import build_backbone, load_model
from lidc_xai.models.inference import view_outputs
from lidc_xai.nodules import predict
from lidc_xai.run import Run
from lidc_xai.training import FitOptions, fit
from lidc_xai.training.fitting import FitResult
from lidc_xai.training.loop.module import FitModule
from lidc_xai.training.metrics import auc

Quick = Callable[..., FitOptions]


def test_learns_on_other_patients_and_comes_back_from_its_folder(
    toy_store: CropStore, quick: Quick, tmp_path: Path
) -> None:
    ids = toy_store.nodule_ids
    options = quick(epochs=12, optimiser={"lr": 1e-3}, augment={"slices": 3}, logs=True)
    result = fit(toy_store, tmp_path / "run", train_ids=ids[:28], validation_ids=ids[28:36], options=options)
    test = PlaneDataset(toy_store, ids[36:], result.model.output_names)
    inputs = result.model.preprocess.inputs(test.planes)
    outputs = view_outputs(result.model, inputs).mean(1)
    assert auc(test.targets[:, 0].numpy(), outputs[:, 0].numpy()) > 0.7
    again = load_model(tmp_path / "run")
    assert torch.equal(view_outputs(again, inputs).mean(1), outputs)
    assert again.calibration == result.model.calibration != {"malignancy": (1.0, 0.0)}
    assert again.training_info["train_patients"] == sorted(set(toy_store.manifest["patient_id"][:28]))
    assert again.training_info["simulated"] is True
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"fit.json", "history.csv", "logs", "model"}
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert list(history["epoch"]) == list(range(12))
    assert history["val_loss"].idxmin() == result.best_epoch
    assert history["train_loss"].iloc[-1] < history["train_loss"].iloc[0]


def test_scales_come_from_the_training_part(toy_store: CropStore, quick: Quick) -> None:
    ids = toy_store.nodule_ids
    result = fit(toy_store, None, train_ids=ids[:20], validation_ids=ids[20:], options=quick(epochs=1))
    diameter = toy_store.manifest["diameter"][:20]
    assert np.allclose(result.model.target_scaling["diameter"], (diameter.mean(), diameter.std()))
    planes = PlaneDataset(toy_store, ids[:20], slices=5).planes.clamp(-1000, 400).double()
    assert np.isclose(result.model.preprocess.mean, planes.mean())
    assert np.isclose(result.model.preprocess.std, planes.std())


class _KilledError(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(("optimiser", "schedule"), [("adamw", "cosine"), ("adamw", "cyclic"), ("muon", "cyclic")])
def test_a_run_that_was_killed_ends_with_the_same_bytes(
    optimiser: str, schedule: str, toy_store: CropStore, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = quick(
        epochs=4,
        model={"dropout": 0.2, "backbone_dropout": 0.1},
        optimiser={"name": optimiser, "schedule": schedule},
        patience=3,
    )
    whole = fit(toy_store, tmp_path / "whole", options=options)
    step = FitModule.training_step

    def dying(module: FitModule, rows: dict, batch: int) -> torch.Tensor:
        if module.current_epoch == 2 and batch == 1:
            raise _KilledError
        return step(module, rows, batch)

    with monkeypatch.context() as patched:
        patched.setattr(FitModule, "training_step", dying)
        with pytest.raises(_KilledError):
            fit(toy_store, tmp_path / "killed", options=options)
    assert (tmp_path / "killed" / "checkpoints" / "last.ckpt").is_file()
    torch.rand(17)  # whatever the process did before must not matter
    resumed = fit(toy_store, tmp_path / "killed", options=options)
    files = ("model/weights.safetensors", "model/model.json", "history.csv")
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    assert resumed.validation == whole.validation
    assert not list((tmp_path / "killed").rglob("*.ckpt"))


def test_the_same_seed_gives_the_same_model_with_a_helper_task(toy_store: CropStore, quick: Quick) -> None:
    """Every weight that learns is drawn from the run's seed, also the mask head's, which is thrown away."""
    options = quick(epochs=1, loss={"mask_weight": 1.0})
    first = fit(toy_store, None, options=options).model.state_dict()
    torch.rand(17)
    again = fit(toy_store, None, options=options).model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = fit(toy_store, None, options=quick(epochs=1, loss={"mask_weight": 1.0}, seed=1)).model.state_dict()
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_a_finished_run_is_loaded_and_another_one_is_refused(
    toy_store: CropStore, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fit(toy_store, tmp_path / "run", options=quick(epochs=1))
    monkeypatch.setattr("lidc_xai.training.fitting.train", None)
    again = fit(toy_store, tmp_path / "run", options=quick(epochs=1))
    assert again.validation == first.validation
    with pytest.raises(UsageError, match=r"another epochs \(1, now 2\)"):
        fit(toy_store, tmp_path / "run", options=quick(epochs=2))
    with pytest.raises(UsageError, match=r"another info\.permute_labels"):
        fit(toy_store, tmp_path / "run", options=quick(epochs=1), info={"permute_labels": True})
    (tmp_path / "run" / "fit.json").write_text("{")
    with pytest.raises(LidcXaiError, match="cannot be read"):
        fit(toy_store, tmp_path / "run", options=quick(epochs=1))


def test_a_large_validation_part_gives_intervals_but_no_coverage(toy_store: CropStore, quick: Quick) -> None:
    ids = toy_store.nodule_ids
    fitted = fit(toy_store, None, train_ids=ids[:8], validation_ids=ids[8:], options=quick(epochs=1)).model
    record = fitted.training_info["intervals"]
    assert (record["nodules"], set(record["outputs"])) == (40, {"texture", "diameter"})
    assert "coverage" not in record
    assert record["malignancy"] == pytest.approx(fitted.calibration["malignancy"])
    table = predict(fitted, toy_store, nodule_ids=ids[8:])
    inside = table["diameter"].between(table["diameter_low"], table["diameter_high"])
    assert inside.all()
    readers = toy_store.manifest.set_index("nodule_id")["diameter"][table["nodule_id"]].to_numpy()
    held = (readers >= table["diameter_low"]) & (readers <= table["diameter_high"])
    assert 36 <= held.sum() <= 40  # what it was made from: at least 90 %
    few = fit(toy_store, None, train_ids=ids[:40], validation_ids=ids[40:], options=quick(epochs=1)).model
    assert "intervals" not in few.training_info


def test_wrong_weights_do_not_bind_the_folder(toy_store: CropStore, quick: Quick, tmp_path: Path) -> None:
    ids, wrong, out = toy_store.nodule_ids, tmp_path / "wrong.safetensors", tmp_path / "run"
    wrong.write_bytes(b"no weights")
    with pytest.raises(LidcXaiError, match=r"wrong\.safetensors"):
        fit(toy_store, out, train_ids=ids[:16], options=quick(epochs=1, model={"weights": str(wrong)}))
    assert fit(toy_store, out, train_ids=ids[:16], options=quick(epochs=1)).folder == out


def test_weights_are_recorded_by_name_and_hash(toy_store: CropStore, quick: Quick, tmp_path: Path) -> None:
    ids, out = toy_store.nodule_ids, tmp_path / "run"

    def run(place: str, seed: int) -> FitResult:
        path = tmp_path / place / "start.safetensors"
        path.parent.mkdir(exist_ok=True)
        torch.manual_seed(seed)
        save_file(build_backbone("vit_small64_p8", size=16).state_dict(), path)
        options = quick(epochs=1, model={"weights": str(path)})
        return fit(toy_store, out, train_ids=ids[:16], validation_ids=ids[16:24], options=options)

    first = run("here", seed=0)
    record = json.loads((out / "fit.json").read_text())
    assert str(tmp_path) not in (out / "fit.json").read_text()
    assert record["key"]["options"]["model"]["weights"].startswith("start.safetensors (sha256 ")
    assert run("there", seed=0).history.equals(first.history)  # the same bytes elsewhere: the same run, only loaded
    with pytest.raises(UsageError, match=r"another model\.weights"):
        run("there", seed=1)
    record["key"]["options"]["model"]["weights"] = str(tmp_path / "here" / "start.safetensors")  # as records once were
    (out / "fit.json").write_text(json.dumps(record))
    assert run("here", seed=0).best_epoch == first.best_epoch


def test_the_callers_random_state_is_left_alone(toy_store: CropStore, quick: Quick) -> None:
    state = torch.get_rng_state()
    fit(toy_store, None, options=quick(epochs=1))
    assert torch.equal(state, torch.get_rng_state())


def test_absent_ratings_do_not_count(toy_store: CropStore, quick: Quick) -> None:
    data = PlaneDataset(toy_store, toy_store.nodule_ids, ("malignancy", "texture", "diameter"), slices=5)
    data.targets[::3, 0], data.targets[1::2, 1] = torch.nan, torch.nan
    result = fit(toy_store, None, options=quick(epochs=1), data=data)
    assert np.isfinite(result.history["val_loss"]).all()


@pytest.mark.parametrize("head", ["mlp", "bottleneck"])
@pytest.mark.parametrize("extra", [{"precision": "bf16-mixed", "accumulate": 2}, {"trainable_blocks": 1}])
def test_other_heads_and_settings_take_a_step(head: str, extra: dict, toy_store: CropStore, quick: Quick) -> None:
    options = quick(
        epochs=1, model={"head": head}, loss={"class_weights": True, "regression": "huber"}, calibration="temperature",
        augment={"scale": 0.2, "rotate_degrees": 20, "scale_hu": 0.1}, monitor="auc", **extra,
    )  # fmt: skip
    result = fit(toy_store, None, options=options)
    assert result.model.calibration["malignancy"][1] == 0.0
    assert np.isfinite(result.history["train_loss"]).all()


def test_loss_that_is_no_number_says_what_to_do(toy_store: CropStore, quick: Quick) -> None:
    options = quick(epochs=3, optimiser={"lr": 1e30, "schedule": "constant", "clip": None})
    with pytest.raises(ModelError, match=r"loss became .* lower optimiser.lr"):
        fit(toy_store, None, options=options)


def _with(store: CropStore, **columns: object) -> CropStore:
    other = CropStore(store.path)
    other.manifest = store.manifest.assign(**columns)
    return other


@pytest.mark.parametrize(
    ("columns", "outputs", "error", "words"),
    [
        ({"label": 1}, ("malignancy",), DataError, "no nodule rated below 3 (label 0)"),
        ({"patient_id": "A"}, ("malignancy",), DataError, "1 patient(s) only"),
        ({"texture": np.nan}, ("texture",), DataError, "no nodule of the training part has a rating of 'texture'"),
        ({"texture": 3.0}, ("texture",), DataError, "training ratings of 'texture' are 3"),
    ],
)
def test_what_cannot_teach_is_refused(
    columns: dict, outputs: tuple, error: type[Exception], words: str, toy_store: CropStore, quick: Quick
) -> None:
    with pytest.raises(error) as caught:
        fit(_with(toy_store, **columns), None, options=quick(outputs=outputs))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_parts_are_refused(toy_store: CropStore, quick: Quick) -> None:
    ids = toy_store.nodule_ids
    with pytest.raises(UsageError, match="in both training and validation"):
        fit(toy_store, None, train_ids=ids[:21], validation_ids=ids[21:], options=quick())
    with pytest.raises(UsageError, match="has no nodule 'X'"):
        fit(toy_store, None, train_ids=["X"], validation_ids=ids[1:], options=quick())
    with pytest.raises(DataError, match="both must have some"):
        fit(toy_store, None, train_ids=ids, validation_ids=[], options=quick())
    with pytest.raises(UsageError, match="no CUDA device"):
        fit(toy_store, None, options=quick(device="cuda:7"))
    with pytest.raises(UsageError, match="wanted auto, cpu, cuda"):
        fit(toy_store, None, options=quick(device="tpu"))


def test_a_full_disk_is_one_line(
    toy_store: CropStore, quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning.pytorch.trainer.trainer.Trainer.save_checkpoint", full)
    with pytest.raises(LidcXaiError, match="the disk is full"):
        fit(toy_store, tmp_path / "run", options=quick())


def test_a_try_takes_the_stores_first_so_many_nodules(toy_store: CropStore, quick: Quick, tmp_path: Path) -> None:
    """``--limit`` of the verb: no patient beyond the first so many nodules is in either part."""
    config = TrainConfig(
        store=toy_store.path, out=tmp_path / "try", limit=20, epochs=1, fit=quick(validation_share=0.3)
    )
    train(config, Run("train", [], {}))
    info = load_model(tmp_path / "try" / "model").training_info
    assert info["train_nodules"] + info["validation_nodules"] == 20
    patients = {*info["train_patients"], *info["validation_patients"]}
    assert patients == set(toy_store.manifest["patient_id"].iloc[:20])
