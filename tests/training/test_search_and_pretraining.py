"""Searches go on after a kill and share a study; pre-training makes weights that a run can start from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from lidc_xai.commands.training import PretrainConfig, pretrain_verb
from lidc_xai.errors import DataError, ModelError, UsageError
from lidc_xai.imaging.store.crop_store import CropStore
from lidc_xai.models import build_backbone, save_model
from lidc_xai.run import Run
from lidc_xai.training import FitOptions, PretrainOptions, Range, SweepOptions, fit, pretrain, sweep, sweeping
from lidc_xai.training.self_supervised import DinoModule

Quick = Callable[..., FitOptions]
SPACE = {"optimiser.lr": Range(low=1e-4, high=1e-2, log=True), "batch_size": Range(choices=[16, 32])}


@pytest.fixture
def parts(toy_store: CropStore) -> dict[str, list[str]]:
    return {"train_ids": toy_store.nodule_ids[:32], "validation_ids": toy_store.nodule_ids[32:40]}


def test_a_search_of_six_trials_killed_and_resumed(
    toy_store: CropStore, quick: Quick, parts: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, search = quick(outputs=("malignancy",), epochs=1), SweepOptions(trials=6, space=SPACE)
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["options"])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return fit(*args, **kwargs)

    monkeypatch.setattr(sweeping, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        sweep(toy_store, tmp_path, options=options, search=search, **parts)
    result = sweep(toy_store, tmp_path, options=options, search=search, **parts)
    assert (result.trials["state"] == "COMPLETE").sum() == 6
    assert len(calls) == 7
    rates = [one.optimiser.lr for one in calls]
    assert len(set(rates)) == len(rates)
    assert result.value == result.trials["value"].min()
    assert result.options.optimiser.lr == result.trials.loc[result.trials["value"].idxmin(), "params_optimiser.lr"]
    assert FitOptions.model_validate(yaml.safe_load((tmp_path / "best.yaml").read_text())) == result.options
    assert len(pd.read_csv(tmp_path / "sweep.csv")) == len(result.trials)
    # a finished search is not searched again, and another one does not mix with it
    sweep(toy_store, tmp_path, options=options, search=search, **parts)
    assert len(calls) == 7
    with pytest.raises(UsageError, match="another store, parts, space or options"):
        sweep(toy_store, tmp_path, options=quick(epochs=2), search=search, **parts)


def test_a_search_never_reads_the_test_part(toy_store: CropStore, quick: Quick, parts: dict, tmp_path: Path) -> None:
    class Watched(CropStore):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.read: set[str] = set()

        def load(self, nodule_id: str) -> Any:
            self.read.add(nodule_id)
            return super().load(nodule_id)

    store = Watched(toy_store.path)
    sweep(store, tmp_path, options=quick(epochs=1), search=SweepOptions(trials=1, space=SPACE), **parts)
    assert store.read == {*parts["train_ids"], *parts["validation_ids"]}


@pytest.mark.parametrize(
    ("space", "storage", "words"),
    [
        ({"optimizer.lr": {"low": 1, "high": 2}}, None, "space 'optimizer.lr': there is no such option"),
        (SPACE, "nosuchdb://x", "storage nosuchdb://x: cannot be opened"),
    ],
)
def test_wrong_searches(
    space: dict, storage: str | None, words: str, toy_store: CropStore, quick: Quick, parts: dict, tmp_path: Path
) -> None:
    search = SweepOptions.of(space=space, storage=storage, trials=1)
    with pytest.raises(UsageError, match=words):
        sweep(toy_store, tmp_path, options=quick(epochs=1), search=search, **parts)
    with pytest.raises(UsageError, match="choices"):
        Range.of(low=1.0)


def test_trials_whose_loss_explodes_count_as_failed(
    toy_store: CropStore, quick: Quick, parts: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*args: Any, **kwargs: Any) -> None:
        raise ModelError("the loss became nan")

    monkeypatch.setattr(sweeping, "fit", explode)
    with pytest.raises(ModelError, match="trials all failed"):
        sweep(toy_store, tmp_path, options=quick(), search=SweepOptions(trials=2, space=SPACE), **parts)


def test_slices_to_learn_from_are_odd() -> None:
    with pytest.raises(UsageError, match="slices must be odd, so that the middle plane is among them"):
        PretrainOptions.of(slices=4)


@pytest.fixture(scope="module")
def tiny() -> PretrainOptions:
    return PretrainOptions(
        size=16, epochs=2, batch_size=24, prototypes=32, local_views=2, slices=1, device="cpu", logs=False,
        warmup_epochs=0,
    )  # fmt: skip


def test_pretraining_gives_weights_that_a_run_starts_from(
    toy_store: CropStore, tiny: PretrainOptions, quick: Quick, tmp_path: Path
) -> None:
    ids = toy_store.nodule_ids[:16]
    weights = pretrain(toy_store, tmp_path / "pre", options=tiny, nodule_ids=ids)
    start = build_backbone("vit_small64_p8", size=16, weights=weights)
    fresh = DinoModule(torch.zeros(2, 3, 1, 16, 16) - 600, tiny).student
    assert any(not torch.equal(a, b) for a, b in zip(start.parameters(), fresh.parameters(), strict=True))
    record = json.loads((tmp_path / "pre" / "pretrain.json").read_text())
    assert record["patients"] == sorted(set(toy_store.manifest["patient_id"][:16]))
    assert len(record["history"]) == 2
    assert not list((tmp_path / "pre").rglob("*.ckpt"))
    model = {"weights": str(weights)}
    result = fit(toy_store, None, options=quick(epochs=1, model=model, trainable_tensors=0))
    assert result.model.initial_weights["sha256"] == record["sha256"]
    kept = result.model.backbone.blocks[0].attn.qkv.weight
    assert torch.equal(kept, start.blocks[0].attn.qkv.weight)


def test_pretraining_continues_to_the_same_weights(
    toy_store: CropStore, tiny: PretrainOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = toy_store.nodule_ids[:12]
    whole = pretrain(toy_store, tmp_path / "whole", options=tiny, nodule_ids=ids)
    step = DinoModule.training_step

    def dying(module: DinoModule, views: list, batch: int) -> Any:
        if module.current_epoch == 1:
            raise KeyError("killed")
        return step(module, views, batch)

    with monkeypatch.context() as patched:
        patched.setattr(DinoModule, "training_step", dying)
        with pytest.raises(KeyError):
            pretrain(toy_store, tmp_path / "killed", options=tiny, nodule_ids=ids)
    again = pretrain(toy_store, tmp_path / "killed", options=tiny, nodule_ids=ids)
    assert whole.read_bytes() == again.read_bytes()
    with pytest.raises(UsageError, match="another epochs"):
        pretrain(toy_store, tmp_path / "whole", options=tiny.model_copy(update={"epochs": 3}), nodule_ids=ids)


def test_views_are_standardised_planes_of_two_sizes(tiny: PretrainOptions) -> None:
    module = DinoModule(torch.full((2, 3, 1, 16, 16), -600.0), tiny)
    views = module.shown[3]
    assert [tuple(view.shape) for view in views] == [(3, 16, 16)] * 2 + [(3, 8, 8)] * 2
    again = module.shown[3]
    assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True))
    with pytest.raises(UsageError, match="is no ViT"):
        DinoModule(torch.zeros(1, 3, 1, 16, 16), tiny.model_copy(update={"backbone": "resnet50"}))


def test_pretraining_on_the_patients_that_taught_a_model(
    toy_store: CropStore, quick: Quick, parts: dict, tmp_path: Path
) -> None:
    """The verb, with axial planes alone: neither validation nor test patients of the model are seen."""
    model = fit(toy_store, tmp_path / "fold-0", options=quick(epochs=1), **parts).model
    config = PretrainConfig(
        store=toy_store.path,
        out=tmp_path / "pre",
        patients_of=tmp_path / "fold-0",
        pretrain=PretrainOptions(
            size=16, epochs=1, prototypes=32, local_views=0, slices=1, views=["axial"], logs=False, warmup_epochs=0
        ),
    )
    pretrain_verb(config, Run("pretrain", [], {}))
    record = json.loads((tmp_path / "pre" / "pretrain.json").read_text())
    assert record["patients"] == sorted(model.training_info["train_patients"])
    assert record["nodules"] == len(parts["train_ids"])
    model.training_info = {}
    save_model(model, tmp_path / "stranger")
    with pytest.raises(DataError, match="no patient that this model was trained on"):
        pretrain_verb(config.model_copy(update={"patients_of": tmp_path / "stranger"}), Run("pretrain", [], {}))
