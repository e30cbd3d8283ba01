"""What a model computes: HU to input, features to outputs, outputs to clinical units."""

import pytest
import torch

from lidc_xai.errors import UsageError
from lidc_xai.models import NoduleModel, Preprocess, build_model
from lidc_xai.models.inference import view_outputs
from lidc_xai.ratings import OUTPUTS


def test_preprocess_clamps_standardises_resizes_and_repeats() -> None:
    ready = Preprocess(size=8, mean=-600.0, std=200.0)
    planes = torch.tensor([[-3000.0, 0.0], [0.0, 3000.0]])
    image = ready.apply(planes)
    assert image.shape == (3, 8, 8)
    assert torch.equal(image[0], image[2])
    assert image[0, 0, 0] == (-1000 + 600) / 200
    assert image[0, -1, -1] == (400 + 600) / 200
    assert torch.allclose(ready.to_hu(image)[0, 0], torch.tensor(-1000.0))
    # pixel centres of align_corners=False: a quarter of the way between the two pixels
    assert torch.isclose(ready.apply(torch.tensor([[0.0, 100.0]]))[0, 0, 2], torch.tensor((12.5 + 600) / 200))


def test_preprocess_keeps_leading_axes_and_round_trips_as_json() -> None:
    ready = Preprocess(size=4, mean=-611.25, std=301.5)
    planes = torch.randn(2, 3, 6, 6) * 300 - 600
    images = ready.apply(planes)
    assert images.shape == (2, 3, 3, 4, 4)
    assert torch.allclose(images[1, 2], ready.apply(planes[1, 2]), atol=1e-6)
    assert Preprocess.from_json(ready.to_json()) == ready
    fitted = ready.fitted_to(planes)
    assert abs(fitted.mean - float(planes.clamp(-1000, 400).mean())) < 1e-3
    with pytest.raises(UsageError, match="std > 0"):
        Preprocess(std=0.0)


def test_forward_is_the_head_on_the_normed_cls_token() -> None:
    model = build_model("vit_small64_p8", ["malignancy", "margin"], seed=0)
    images = torch.randn(2, 3, 64, 64)
    tokens = model.backbone.forward_features(images)
    assert torch.equal(model(images), model.head(tokens[:, 0]))
    assert (model.output_names, model.output_kinds) == (("malignancy", "margin"), ("binary", "regression"))


def test_units_undo_the_scaling_and_calibration() -> None:
    model = build_model("vit_small64_p8", ["margin", "malignancy"])
    model.target_scaling["margin"], model.calibration["malignancy"] = (3.0, 0.5), (2.0, -1.0)
    units = model.in_units(torch.tensor([[2.0, 0.5], [-1.0, 3.0]]))
    assert torch.allclose(units[:, 0], torch.tensor([4.0, 2.5]))
    assert torch.allclose(units[:, 1], torch.sigmoid(torch.tensor([0.0, 5.0])))


def test_bottleneck_reads_malignancy_from_the_biomarkers_alone() -> None:
    model = build_model("vit_small64_p8", OUTPUTS, head="bottleneck", seed=0).double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    outputs = model(images)
    shares = model.head.shares(outputs)
    assert set(shares) == {*OUTPUTS[1:], "bias"}
    assert torch.allclose(sum(shares.values()), outputs[:, 0])
    # a map that is linear in the target composes: the gradient of the verdict is the weighted sum of the biomarkers'
    weights = dict(zip(model.head.concept_names, model.head.verdict.weight[0], strict=True))
    whole = torch.autograd.grad(outputs[:, 0].sum(), images, retain_graph=True)[0]
    parts = sum(
        weights[name] * torch.autograd.grad(outputs[:, index].sum(), images, retain_graph=True)[0]
        for index, name in enumerate(OUTPUTS)
        if name != "malignancy"
    )
    assert torch.allclose(whole, parts, atol=1e-12)


@pytest.mark.parametrize(("head", "layers"), [("linear", 1), ("mlp", 2), ("bottleneck", 2)])
def test_heads_have_their_layers_and_seed_fixes_them(head: str, layers: int) -> None:
    state = torch.get_rng_state()
    first, second = (build_model("vit_small64_p8", OUTPUTS, head=head, seed=5) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(isinstance(module, torch.nn.Linear) for module in first.head.modules()) == layers
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_view_outputs_are_the_models_own_in_any_batching(untrained: NoduleModel) -> None:
    planes = torch.randn(5, 3, 16, 16) * 300 - 600
    untrained.train()
    outputs = view_outputs(untrained, planes, batch_size=4)
    assert untrained.training
    untrained.eval()
    one = untrained(untrained.preprocess.apply(planes[2, 1])[None])
    assert outputs.shape == (5, 3, 2)
    assert torch.allclose(outputs[2, 1], one[0], atol=1e-5)


@pytest.fixture
def untrained() -> NoduleModel:
    return build_model("vit_small64_p8", ["malignancy", "diameter"], size=16, dropout=0.5, seed=1)
