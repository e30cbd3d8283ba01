"""What a GPU gives is what the CPU gives: every method, measure and way to a nodule's map, in float32.

Skipped without a GPU. Weights and images are seeded; noise is drawn on the CPU, so that a seed means the same draws.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from lidc_xai.evaluation import (
    adcc,
    attack_stability,
    blur_mask_test,
    box_sensitivity,
    class_discrimination,
    compactness,
    deletion_insertion,
    epsilon_perturbation,
    fidelity,
    localisation,
    noise_stability,
    parameter_randomisation,
    run_benchmark,
    saco,
    sensitivity_n,
    shift_invariance,
    two_probable,
)
from lidc_xai.evaluation.benchmark.options import BenchmarkOptions
from lidc_xai.evaluation.cases import Case
from lidc_xai.explain import ConceptSimilarity, LogOdds, concept_vector, explain, explain_each, list_methods
from lidc_xai.imaging import NoduleCrop
from lidc_xai.models import build_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = "cuda"
CLOSE = 1e-4
"""Largest difference as a share of the largest score."""


def _shaken(model: nn.Module) -> nn.Module:
    """Weights away from their starting values, so that no layer scale or bias is 1 or 0."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def _vit(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}
    return _shaken(timm.create_model("vit_tiny_patch16_224", **small | options))


class _Gated(nn.Module):
    """A ViT whose forward pass is its user's own: it is computed through its modules."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = _vit()
        self.vit.blocks[1].attn.register_forward_hook(lambda module, args, output: 0.5 * output)

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(images)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": _vit,
    "registers, layer scale, no fused bias": lambda: _vit(reg_tokens=2, init_values=0.5),
    "mean of patches": lambda: _vit(global_pool="avg", class_token=False),
    "hooked": lambda: _Gated().vit,
    "rotary": lambda: _shaken(timm.create_model("test_vit4", num_classes=5, img_size=32)),
    "windows": lambda: _shaken(
        timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4),
            num_classes=5,
        )
    ),
    "cnn": lambda: _shaken(timm.create_model("test_resnet", num_classes=5)),
    "efficientnet": lambda: _shaken(timm.create_model("test_efficientnet", num_classes=5)),
}  # fmt: skip


def _images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def _close(there: Tensor, here: Tensor) -> None:
    assert there.device.type == CUDA
    gap = (there.cpu() - here).abs().max() / here.abs().max()
    assert gap < CLOSE, f"{gap:.1e}"


@pytest.mark.parametrize("name", MODELS)
def test_every_method_gives_the_map_of_the_cpu(name: str) -> None:
    here = MODELS[name]()
    there, images = deepcopy(here).to(CUDA), _images(size=64 if name in ("cnn", "efficientnet") else 32)
    targets = torch.tensor([[0, 3], [1, 2]])
    can = list_methods(here)
    assert list_methods(there) == can
    wrong = []
    for method in can:
        expected, found = (explain(model, images, targets, method) for model in (here, there))
        try:
            _close(found.relevance, expected.relevance)
            _close(found.values, expected.values)
            _ = found.lone_peaks, found.notes, found.calmed(), found.to_pixels("bilinear")
        except AssertionError as error:
            wrong.append(f"{method}: {error}")
    assert not wrong


def test_options_and_targets_that_make_tensors_of_their_own() -> None:
    here = _vit()
    there, images = deepcopy(here).to(CUDA), _images()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("reciprocam", {"kernel": "dirac", "cls": False}),
        ("reciprocam", {"tokens": "block_input", "layer": 0}),
        ("attention_rollout", {"discard_ratio": 0.3}),
        ("gradient_rollout", {"discard_ratio": 0.3, "clamp": False}),
        ("cdam", {"per_head": True, "engine": "autograd"}),
        ("cdam", {"backward": "libra"}),
        ("smooth_cdam", {"alteration": "mask", "samples": 5}),
        ("smooth_cdam", {"alteration": "feature", "samples": 5, "engine": "autograd"}),
        ("integrated_cdam", {"engine": "autograd"}),
        ("integrated_gradients", {"baseline": "black"}),
        ("attn_lrp", {"gamma_linear": 0.25, "gamma_conv": 0.25}),
        ("attn_lrp", {"attention": "detach", "at": "pixels"}),
        ("libragrad", {"base": "fullgrad"}),
        ("token_ablation", {"at": "last"}),
        ("partial_lrp", {"rule": "separate"}),
    ]
    for method, options in calls:
        found, expected = (explain(model, images, [0, 3], method, **options).relevance for model in (there, here))
        _close(found, expected)
    concepts = [ConceptSimilarity(concept_vector(model, images), "cosine") for model in (there, here)]
    for pair in (concepts, [LogOdds(1, contrast="maps")] * 2, [torch.tensor([1, 2]).to(CUDA), torch.tensor([1, 2])]):
        found, expected = (
            explain(model, images, one).relevance for model, one in zip((there, here), pair, strict=True)
        )
        _close(found, expected)
    both = explain_each([there, deepcopy(there)], images, 1)
    assert torch.equal(both[0]["cdam"].relevance, both[1]["cdam"].relevance)


def test_tf32_is_off_inside_and_as_it_was_afterwards() -> None:
    before = torch.backends.cudnn.allow_tf32
    here, images = _vit(), _images(1)
    saliency = explain(deepcopy(here).to(CUDA), images, 0, "saliency").relevance
    assert torch.backends.cudnn.allow_tf32 == before
    _close(saliency, explain(here, images, 0, "saliency").relevance)


MEASURES: dict[str, Callable[[nn.Module, Tensor, Tensor, Tensor], Any]] = {
    "fidelity": lambda model, x, maps, y: fidelity(model, x, maps, y, points=5).area,
    "fidelity, lung": lambda model, x, maps, y: (
        fidelity(model, x, maps, y, points=5, replacement="lung", masks=torch.ones(len(x), 8, 8, dtype=torch.bool)).area
    ),
    "box": lambda model, x, maps, y: box_sensitivity(model, x, maps, y, boxes=10).area,
    "discrimination": lambda model, x, maps, y: class_discrimination(model, x, maps, -maps, y, boxes=10, points=5).box,
    "compactness": lambda model, x, maps, y: compactness(maps).value,
    "deletion": lambda model, x, maps, y: deletion_insertion(model, x, maps, y, cell=56).area_deletion,
    "sensitivity-n": lambda model, x, maps, y: sensitivity_n(model, x, maps, y, sets=10).mean,
    "saco": lambda model, x, maps, y: saco(model, x, maps, y).saco,
    "adcc": lambda model, x, maps, y: adcc(model, x, y).adcc,
    "epsilon": lambda model, x, maps, y: epsilon_perturbation(model, x.clamp(-0.9, 0.9), y, steps=(2,)).delta_logit,
    "blur/mask": lambda model, x, maps, y: (
        blur_mask_test(model, x, {"a": (maps, -maps)}, torch.stack([y, (y + 1) % 5], 1)).after
    ),
    "noise": lambda model, x, maps, y: noise_stability(model, x, y, draws=1).spearman,
    "attack": lambda model, x, maps, y: attack_stability(model, x, y)[1].cpu().numpy(),
    "shift": lambda model, x, maps, y: shift_invariance(model, x, y).spearman,
    "localisation": lambda model, x, maps, y: localisation(maps, torch.eye(32).bool().expand(len(x), -1, -1), 1.0).iou,
}


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_gives_the_figure_of_the_cpu(name: str) -> None:
    here = _vit()
    there, images, labels = deepcopy(here).to(CUDA), _images(), torch.tensor([0, 3])
    measure = MEASURES[name]
    maps = explain(here, images, labels, "integrated_gradients").relevance[:, 0]
    expected = measure(here, images, maps, labels)
    for seen, own, asked in ((images, maps.to(CUDA), labels), (images.to(CUDA), maps, labels.to(CUDA))):
        if name == "localisation":
            own = maps.to(CUDA)
        found = measure(there, seen, own, asked if name != "blur/mask" else asked.cpu())
        assert np.allclose(found, expected, rtol=2e-3, atol=2e-4)


def test_two_probable_classes_and_weights_taken_away() -> None:
    rows, pairs = two_probable(torch.tensor([[2.0, 1.9, -5.0]], device=CUDA))
    assert (rows.tolist(), pairs.tolist()) == ([0], [[0, 1]])
    found = parameter_randomisation(_vit().to(CUDA), _images(1), 0, "cdam")
    assert np.isfinite(found.final_spearman).all()


def test_the_benchmark_gives_the_table_of_the_cpu(tmp_path: Any) -> None:
    here = _vit()
    there, images = deepcopy(here).to(CUDA), _images()
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[:, 8:20, 8:20] = True
    cases = [Case(one[None], torch.tensor([[1, 2]]), masks=masks, case_id=str(k)) for k, one in enumerate(images)]
    options = BenchmarkOptions(
        methods=("cdam", "smooth_cdam", "reciprocam", "saliency"), random_weights=False, points=5, boxes=10,
        replacements=("blur", "lung"),
    )  # fmt: skip
    tables = []
    for name, model in (("here", here), ("there", there)):
        run = run_benchmark(model, cases, tmp_path / name, options)
        assert not run.skipped
        tables.append(run.table().sort_values(["case", "method", "metric", "output", "x"]).reset_index(drop=True))
    assert len(tables[0]) == len(tables[1])
    assert (tables[0]["value"].isna() == tables[1]["value"].isna()).all()
    gap = (tables[0]["value"] - tables[1]["value"]).abs().fillna(0)
    assert (gap <= 1e-3 + 5e-3 * tables[0]["value"].abs()).mean() > 0.98  # a tie may fall to the other side


def test_nodules_are_read_and_explained_as_on_the_cpu() -> None:
    pytest.importorskip("SimpleITK")
    from lidc_xai.nodules import explain_nodules, predict

    ct = np.random.default_rng(0).normal(-700, 200, (32, 32, 32)).astype(np.float32)
    crop = NoduleCrop(ct, np.eye(4), nodule_id="LIDC-IDRI-0001-s1-n0", series_uid="1.2.3")
    models = [build_model("vit_small64_p8", ["malignancy", "margin"], seed=seed) for seed in range(2)]
    rows = [predict(models, [crop], device=device).iloc[0] for device in ("cpu", CUDA)]
    assert np.isclose(rows[0]["malignancy_logit"], rows[1]["malignancy_logit"], rtol=1e-3, atol=1e-4)
    maps = [next(explain_nodules(models, [crop], ["cdam"], device=device))["cdam"] for device in ("cpu", CUDA)]
    assert np.allclose(maps[0].relevance, maps[1].relevance, atol=1e-3 * np.abs(maps[0].relevance).max())
