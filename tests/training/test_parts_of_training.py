"""Options, augmentation, losses, optimiser and calibration: each against its definition."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch

from lidc_xai.data import Augmentation
from lidc_xai.data.transforms import MovePlanes
from lidc_xai.errors import UsageError
from lidc_xai.models import build_model
from lidc_xai.models.inference import turned, turned_back
from lidc_xai.training.intervals import calibrate
from lidc_xai.training.loop.losses import masked_loss
from lidc_xai.training.loop.optimiser import build_optimiser, build_schedule, choose_trainable
from lidc_xai.training.loop.parts import split_off_validation
from lidc_xai.training.options import FitOptions, LossOptions, OptimiserOptions

PLAIN = Augmentation(rotate90=False, flip=False, shift_pixels=0, shift_hu=0)


def numbers_of(augment: Augmentation, count: int, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    return torch.stack([augment.draw(f"n{place}", seed, epoch, 3).numbers() for place in range(count)])


def moved(planes: torch.Tensor, numbers: torch.Tensor, centre_hu: float = 0.0) -> torch.Tensor:
    return MovePlanes(centre_hu)({"image": planes[:, None], "numbers": numbers})["image"][:, 0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"epoch": 3}, "epoch: Extra inputs"),
        ({"model": {"outputs": ["cancer"]}}, "model.outputs"),
        ({"optimiser": {"lr": -1}}, "optimiser.lr"),
        ({"augment": {"slices": 4}}, "odd"),
        ({"trainable_tensors": 3, "trainable_blocks": 1}, "not both"),
        ({"devices": 3, "batch_size": 16}, "multiple of devices"),
        ({"monitor": "auc", "model": {"outputs": ["margin"]}}, "needs the output malignancy"),
    ],
)
def test_wrong_options_name_the_field(values: dict, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        FitOptions.of(**values)
    assert words in str(caught.value)


def test_draws_depend_on_seed_epoch_and_nodule_alone() -> None:
    augment = Augmentation(rotate_degrees=10, scale=0.1, scale_hu=0.1)
    first, again, other = (numbers_of(augment, 50, seed=1, epoch=epoch) for epoch in (2, 2, 3))
    assert torch.equal(first, again)
    assert not (first == other).all(1).any()
    assert not torch.equal(first, numbers_of(augment, 50, seed=2, epoch=2))
    drawn = [augment.draw(f"n{place}", 1, 2, 3) for place in range(50)]
    assert {draw.view for draw in drawn} == {0, 1, 2}
    assert {draw.slice for draw in drawn} == {-2, -1, 0, 1, 2}
    planes = torch.randn(50, 16, 16)
    order = torch.randperm(50)
    together = moved(planes[order], first[order], -600.0)
    alone = moved(planes[7:8], first[7:8], -600.0)
    assert torch.allclose(together[order.tolist().index(7)], alone[0], atol=1e-5)


def test_plain_draws_change_nothing_and_quarter_turns_are_exact() -> None:
    planes = torch.randn(40, 9, 9)
    assert torch.equal(moved(planes, numbers_of(PLAIN, 40)), planes)
    turning = numbers_of(PLAIN.model_copy(update={"rotate90": True, "flip": True}), 40)
    changed = moved(planes, turning)
    assert all(torch.equal(turned(planes[i], int(turning[i, 0])), changed[i]) for i in range(40))
    assert all(torch.equal(turned_back(changed[i], int(turning[i, 0])), planes[i]) for i in range(40))
    assert set(turning[:, 0].tolist()) == set(range(8))
    assert len({tuple(turned(planes[0], turn).flatten().tolist()) for turn in range(8)}) == 8
    interpolated = MovePlanes._resample(planes[:, None], turning)[:, 0]
    assert torch.allclose(interpolated, changed, atol=1e-4)  # both ways turn the same way


def test_shift_is_in_pixels_zoom_enlarges_and_hu_move_about_the_centre() -> None:
    ramp = torch.arange(11.0).expand(1, 11, 11) * 10
    shifting = PLAIN.model_copy(update={"shift_pixels": 2.0})
    drawn = shifting.draw("n0", 0, 0, 3)
    assert torch.isclose((moved(ramp, numbers_of(shifting, 1)) - ramp)[0, 5, 5] / 10, torch.tensor(drawn.shift[0]))
    assert 0 < abs(drawn.shift[0]) <= 2.0
    zooming = PLAIN.model_copy(update={"scale": 0.3})
    slope = torch.diff(moved(ramp, numbers_of(zooming, 1))[0, 5, 4:7]).mean() / 10
    assert torch.isclose(slope, torch.tensor(1 / zooming.draw("n0", 0, 0, 3).zoom), atol=1e-4)
    stretching = PLAIN.model_copy(update={"scale_hu": 0.4, "shift_hu": 30.0})
    drawn = stretching.draw("n0", 0, 0, 3)
    changed = moved(ramp, numbers_of(stretching, 1), 50.0)
    assert torch.allclose(changed, (ramp - 50) * drawn.scale_hu + 50 + drawn.shift_hu, atol=1e-3)


def test_loss_counts_what_is_there() -> None:
    outputs = torch.tensor([[0.3, 1.0, -1.0], [-2.0, 0.5, 2.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, math.nan], [math.nan, 2.5, math.nan]])
    kinds = ("binary", "regression", "regression")
    bce, mse = math.log(1 + math.exp(-0.3)), (1.0 + 4.0) / 2
    loss = masked_loss(outputs, targets, kinds, LossOptions(regression_weight=0.5))
    assert math.isclose(loss.item(), bce + 0.5 * (mse + 0.0) / 2, rel_tol=1e-6)
    loss.backward()
    assert torch.isfinite(outputs.grad).all()
    assert outputs.grad[1, 0] == 0
    huber = masked_loss(outputs, targets, kinds, LossOptions(regression="huber"))
    assert math.isclose(huber.item(), bce + ((0.5 + 1.5) / 2) / 2, rel_tol=1e-6)
    weighted = masked_loss(outputs, targets, kinds, LossOptions(regression_weight=0.0), positive_weight=3.0)
    assert math.isclose(weighted.item(), 3 * bce, rel_tol=1e-6)
    smoothed = masked_loss(outputs[:1, :1], targets[:1, :1], kinds[:1], LossOptions(label_smoothing=0.1))
    assert math.isclose(smoothed.item(), 0.9 * bce + 0.1 * (bce + 0.3), rel_tol=1e-5)


@pytest.mark.parametrize(("choice", "open_names"), [
    ({"trainable_tensors": 3}, {"backbone.norm.bias", "head.weight", "head.bias"}),
    ({"trainable_tensors": 0}, {"head.weight", "head.bias"}),
    ({"trainable_blocks": 0}, {"backbone.norm.weight", "backbone.norm.bias", "head.weight", "head.bias"}),
])  # fmt: skip
def test_depth_that_learns(choice: dict[str, int], open_names: set[str]) -> None:
    model = build_model("vit_small64_p8", size=16)
    count = choose_trainable(model, FitOptions(**choice))
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found == open_names
    assert count == len(open_names)


def test_blocks_that_learn_take_everything_after_them_along() -> None:
    model = build_model("vit_small64_p8", size=16)
    choose_trainable(model, FitOptions(trainable_blocks=2))
    for name, parameter in model.named_parameters():
        wanted = name.startswith(("backbone.blocks.4.", "backbone.blocks.5.", "backbone.norm.", "head."))
        assert parameter.requires_grad == wanted, name
    with pytest.raises(UsageError, match="no transformer blocks"):
        choose_trainable(build_model("resnet50"), FitOptions(trainable_blocks=1))


def test_decay_spares_biases_norms_and_tokens() -> None:
    model = build_model("vit_small64_p8", size=16)
    decayed, spared = build_optimiser(model, OptimiserOptions(weight_decay=0.1)).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert spared["weight_decay"] == 0
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed["params"]} == {"weight"}
    assert {"backbone.cls_token", "backbone.pos_embed", "head.bias"} <= {names[id(p)] for p in spared["params"]}


def test_muon_moves_the_blocks_matrices_and_adamw_the_rest() -> None:
    model = build_model("vit_nodule_p8", seed=0)
    options = OptimiserOptions(name="muon", lr=1e-3, muon_lr=4e-3, weight_decay=0.0)
    optimiser = build_optimiser(model, options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    matrices, decayed, spared = ({names[id(p)] for p in group["params"]} for group in optimiser.param_groups)
    assert len(matrices) == 16
    assert all(name.startswith("backbone.blocks.") and name.endswith("weight") for name in matrices)
    assert "head.weight" in decayed
    assert {"backbone.cls_token", "backbone.pos_embed", "head.bias"} <= spared
    assert matrices | decayed | spared == set(names.values())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))).sum().backward()
    optimiser.step()
    moved = {name: (parameter - before[name]).detach() for name, parameter in model.named_parameters()}
    # An orthogonalised step: the largest singular value is muon_lr in AdamW's scale (Newton's iteration: roughly).
    largest = torch.linalg.matrix_norm(moved["backbone.blocks.0.attn.qkv.weight"], 2)
    assert 0.6 < float(largest) / (4e-3 * 0.2 * math.sqrt(288)) < 1.3
    # AdamW's first step with Nesterov's look ahead: (1 + .9) times the learning rate for every weight.
    assert torch.allclose(moved["head.bias"].abs(), torch.tensor(1.9e-3), rtol=1e-2)
    with pytest.raises(UsageError, match="needs matrices of transformer blocks"):
        build_optimiser(torch.nn.Linear(2, 2), options)


def _rates(steps: int, per_epoch: int, **values: object) -> list[float]:
    options = OptimiserOptions.model_validate({"lr": 1.0, **values})
    optimiser = build_optimiser(torch.nn.Linear(2, 2), options)
    schedule = build_schedule(optimiser, options, per_epoch, steps // per_epoch)
    rates = []
    for _ in range(steps):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return rates


def test_schedules_have_their_shapes() -> None:
    assert _rates(6, 2, schedule="exponential", gamma=0.5) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    cyclic = _rates(9, 1, schedule="cyclic", cycle_epochs=4)
    assert np.allclose(cyclic, [0.001, 0.5005, 1, 0.5005, 0.001, 0.25075, 0.5005, 0.25075, 0.001])
    cosine = _rates(10, 1, schedule="cosine", warmup_epochs=2, final_share=0.1)
    assert np.argmax(cosine) == 2
    assert math.isclose(cosine[2], 1.0)
    assert all(np.diff(cosine[2:]) < 0)
    assert cosine[-1] > 0.1
    assert _rates(3, 1, schedule="constant") == [1, 1, 1]


def test_calibration_recovers_slope_and_intercept() -> None:
    noise = np.random.default_rng(0)
    logits = noise.normal(0, 2, 4000)
    labels = (noise.random(4000) < 1 / (1 + np.exp(-(0.5 * logits - 1)))).astype(float)
    slope, intercept = calibrate(logits, labels, "platt") or (0, 0)
    assert abs(slope - 0.5) < 0.05
    assert abs(intercept + 1) < 0.1
    assert calibrate(logits, (logits > 0).astype(float), "temperature")[1] == 0.0  # type: ignore[index]
    assert calibrate(logits, labels, "none") == (1.0, 0.0)


def test_calibration_of_small_or_odd_parts_stays_finite_and_keeps_the_sign() -> None:
    slope, intercept = calibrate(np.array([-3.0, -2.0, 2.0, 3.0]), np.array([0, 0, 1, 1.0]), "platt") or (0, 0)
    assert 0 < slope < 5
    assert math.isfinite(intercept)
    against, _ = calibrate(np.array([-3.0, -2.0, 2.0, 3.0]), np.array([1, 1, 0, 0.0]), "platt") or (0, 0)
    assert against > 0
    assert calibrate(np.array([1.0, 2.0]), np.array([1.0, 1.0]), "platt") is None


def test_quick_options_are_what_tests_think(quick: Callable[..., FitOptions]) -> None:
    assert quick(epochs=3).epochs == 3


def test_the_asked_share_of_the_patients_is_set_aside_whole() -> None:
    rows = [{"nodule_id": f"p{k}-n{n}", "patient_id": f"p{k}", "label": k % 2} for k in range(20) for n in range(2)]
    table = pd.DataFrame(rows)
    train, aside = split_off_validation(table, table["nodule_id"].tolist(), FitOptions(validation_share=0.2))
    patients = table.set_index("nodule_id")["patient_id"]
    assert patients[aside].nunique() == 4
    assert set(patients[aside]).isdisjoint(patients[train])
    assert len(train) + len(aside) == 40
