"""Targets: what may be asked for, what it becomes, its gradient in logit space, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError, UsageError
from lidc_xai.explain import (
    ConceptSimilarity,
    Logit,
    LogOdds,
    LogProbability,
    MaxContrast,
    MeanContrast,
    Probability,
    concept_vector,
    explain,
)
from lidc_xai.explain.networks.outputs import Outputs, OutputSpec
from lidc_xai.explain.targets import resolve
from lidc_xai.models import NoduleModel

CLASSES = OutputSpec(("class",) * 5)
NODULE = OutputSpec(("binary", "regression"), ("malignancy", "margin"))


def gradient(target: Any, y: Tensor, spec: OutputSpec = CLASSES) -> Tensor:
    y = y.clone().requires_grad_()
    found = resolve(target, spec, len(y), lambda: y.detach())
    return torch.autograd.grad(found.scores(y).sum(), y)[0]


def test_gradients_in_logit_space() -> None:
    y = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    t, p = torch.tensor([0, 4, 2, 2]), y.softmax(-1)
    e = nn.functional.one_hot(t, 5).double()
    others = y.masked_fill(e.bool(), -torch.inf)
    w = e - others.softmax(-1)
    p_t = p.gather(1, t[:, None])
    expected = {
        Logit: e,
        Probability: p_t * (1 - p_t) * w,
        LogProbability: (1 - p_t) * w,
        LogOdds: w,
        MeanContrast: e - (1 - e) / 4,
        MaxContrast: e - nn.functional.one_hot(others.argmax(-1), 5),
    }
    for kind, slope in expected.items():
        assert torch.allclose(gradient(kind(t), y), slope, rtol=1e-12, atol=1e-15), kind.__name__


def test_log_odds_survive_where_probabilities_are_saturated() -> None:
    y = torch.tensor([[900.0, 0.0, 1.0, 2.0, 3.0]])
    assert not gradient(Probability(1), y).any()
    slope = gradient(LogOdds(1), y)
    assert slope.isfinite().all()
    assert slope[0, 0] == -1


def test_binary_outputs_use_the_sigmoid() -> None:
    y = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    asked = [Logit("malignancy"), Probability("malignancy"), LogProbability(0), LogOdds(0), "margin"]
    values = resolve(asked, NODULE, 3, lambda: y).scores(y)
    m = y[:, 0]
    expected = torch.stack([m, m.sigmoid(), m.sigmoid().log(), m, y[:, 1]], dim=1)
    assert torch.allclose(values, expected, rtol=1e-12)
    single = OutputSpec(("binary",))
    assert torch.allclose(resolve(Probability(), single, 3, lambda: y[:, :1]).scores(y[:, :1])[:, 0], m.sigmoid())


def test_several_labels_at_once_use_the_sigmoid_on_request() -> None:
    y = torch.randn(2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    asked = [Probability(1, activation="sigmoid"), LogOdds(1, activation="sigmoid"), Probability(1)]
    values = resolve(asked, CLASSES, 2, lambda: y).scores(y)
    assert torch.allclose(values[:, 0], y[:, 1].sigmoid())
    assert torch.allclose(values[:, 1], y[:, 1])
    assert torch.allclose(values[:, 2], y.softmax(-1)[:, 1])


def test_scores_keep_axes_between_image_and_output() -> None:
    y = torch.randn(2, 7, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = resolve([MaxContrast(torch.tensor([1, 4])), LogOdds(3), MeanContrast(0)], CLASSES, 2, lambda: y[:, 0, 0])
    whole = found.scores(y)
    assert whole.shape == (2, 7, 3, 3)
    for k in range(7):
        assert torch.allclose(whole[:, k, 1], found.scores(y[:, k, 1]))


@pytest.mark.parametrize(
    ("asked", "columns", "names"),
    [
        (None, [[2], [0], [4]], ("predicted",)),
        (3, [[3]] * 3, ("3",)),
        (np.int64(3), [[3]] * 3, ("3",)),
        (torch.tensor(3), [[3]] * 3, ("3",)),
        ([0, LogOdds(1)], [[0, 1]] * 3, ("0", "log_odds(1)")),
        (torch.tensor([1, 0, 4]), [[1], [0], [4]], ("per image",)),
        (torch.tensor([[1, 2], [0, 0], [4, 3]]), [[1, 2], [0, 0], [4, 3]], ("per image", "per image")),
        ([Probability(torch.tensor([1, 0, 4])), 2], [[1, 2], [0, 2], [4, 2]], ("probability(per image)", "2")),
        (MaxContrast(), [[2], [0], [4]], ("max_contrast(predicted)",)),
    ],
)
def test_what_a_target_may_be(asked: Any, columns: list[list[int]], names: tuple[str, ...]) -> None:
    y = torch.eye(5)[[2, 0, 4]]
    found = resolve(asked, CLASSES, 3, lambda: y)
    assert found.columns.tolist() == columns
    assert found.names == names
    assert len(found) == len(names)


def test_nothing_asked_is_every_output_of_a_nodule_model(nodule: NoduleModel, planes: Tensor) -> None:
    found = explain(nodule, planes)
    assert found.target_names == ("malignancy", "margin", "diameter")
    assert torch.allclose(found.values, nodule(planes), atol=1e-6)
    by_name = explain(nodule, planes, ["diameter", Probability("malignancy")])
    assert torch.allclose(by_name.relevance[:, 0], found.relevance[:, 2])
    p = found.values[:, 0].sigmoid()
    assert torch.allclose(by_name.values[:, 1], p, atol=1e-6)
    assert torch.allclose(by_name.relevance[:, 1], (p * (1 - p)).view(-1, 1, 1) * found.relevance[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (9, "output 9 does not exist; this model has outputs 0 to 4"),
        (-1, "output -1 does not exist"),
        ("cat", "'cat': this model's outputs have no names; give a class index"),
        (1.5, "a target is a class index, an output's name or a Target, not float"),
        (True, "not bool"),
        ([], "the list of targets is empty"),
        (torch.tensor([0.5, 1.0, 2.0]), r"a LongTensor \(B,\) or \(B, T\) of classes, not float32 of shape \(3,\)"),
        (torch.tensor([0, 1]), r"targets of shape \(2,\) are given for 3 images"),
        (Logit(torch.tensor([0, 1])), r"targets of shape \(2,\) are given for 3 images"),
        (torch.tensor([0, 1, 7]), "output 7 does not exist"),
        (Probability(0, activation="tanh"), "activation is 'softmax' or 'sigmoid', not 'tanh'"),
        (LogOdds(0, contrast="both"), "contrast is 'target' or 'maps', not 'both'"),
        (ConceptSimilarity(torch.zeros(7)), "the concept vector has 7 entries; this head reads 24"),
    ],
)
def test_targets_that_do_not_fit_are_refused(vit: nn.Module, images: Tensor, asked: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        explain(vit, images, asked)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("malignency", "unknown output 'malignency'; this model has malignancy, margin, diameter"),
        (Probability("margin"), "Probability has no meaning on the regression output 'margin'; use Logit"),
        (LogOdds(1), "LogOdds has no meaning on the regression output"),
        (MeanContrast("malignancy"), "MeanContrast has no meaning on the binary output 'malignancy'"),
        (MaxContrast("malignancy"), "MaxContrast has no meaning on the binary output"),
        (Probability(), "needs an output's name: malignancy, margin, diameter"),
        (Probability("malignancy", activation="softmax"), "activation='softmax' needs class logits"),
    ],
)
def test_what_has_no_meaning_on_an_output_is_refused(
    nodule: NoduleModel, planes: Tensor, asked: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        explain(nodule, planes, asked)


def test_concept_likeness_needs_a_known_head_and_a_vector() -> None:
    with pytest.raises(UsageError, match="measure is 'dot', 'cosine' or 'l2', not 'l1'"):
        ConceptSimilarity(torch.zeros(3), "l1")
    with pytest.raises(UsageError, match=r"a concept vector has the shape \(D,\), not \(1, 3\)"):
        ConceptSimilarity(torch.zeros(1, 3))
    found = resolve(ConceptSimilarity(torch.zeros(3)), CLASSES, 1, lambda: torch.zeros(1, 5))
    with pytest.raises(UsageError, match="this model's head is unknown"):
        found.scores(Outputs(torch.zeros(1, 5)))


def test_concept_vector_is_the_mean_of_what_the_head_reads(
    vit: Any, cnn: Any, nodule: Any, images: Tensor, planes: Tensor
) -> None:
    reads = {
        vit: lambda x: vit.forward_head(vit.forward_features(x), pre_logits=True),
        cnn: lambda x: cnn[:-1](x),
        nodule: nodule.features,
    }
    for model, features in reads.items():
        x = planes if model is nodule else images
        with torch.no_grad():
            expected = features(x).mean(0)
        for max_batch in (None, 2):
            assert torch.allclose(concept_vector(model, x, max_batch=max_batch), expected, atol=1e-6)
    maps = explain(cnn, images, ConceptSimilarity(concept_vector(cnn, images), "cosine"), "saliency")
    assert maps.target_names == ("concept(cosine)",)
    assert maps.relevance.any()
    with pytest.raises(UsageError, match="max_batch is a whole number from 1"):
        concept_vector(vit, images, max_batch=0)


def test_concept_vector_of_a_folder(vit: Any, cnn: nn.Module, tmp_path: Any) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 255, (40, 48, 3), dtype=np.uint8) for _ in range(2)]
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("not a picture")

    def prepare(picture: Any) -> Tensor:
        return torch.from_numpy(np.array(picture.resize((32, 32)))).permute(2, 0, 1).float() / 255

    found = concept_vector(vit, tmp_path, transform=prepare)
    stacked = torch.stack([prepare(Image.fromarray(picture)) for picture in pictures])
    assert torch.allclose(found, concept_vector(vit, stacked))
    vit.pretrained_cfg = {**vit.pretrained_cfg, "input_size": (3, 32, 32)}
    assert concept_vector(vit, tmp_path).shape == (24,)
    with pytest.raises(UsageError, match="Sequential does not say how pictures are prepared"):
        concept_vector(cnn, tmp_path)
    with pytest.raises(UsageError, match="is not a folder"):
        concept_vector(vit, tmp_path / "none")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(Exception, match=r"broken.png cannot be read as a picture"):
        concept_vector(vit, tmp_path, transform=prepare)


@pytest.mark.parametrize("engine", ["exact", "autograd"])
@pytest.mark.parametrize("method", ["cdam", "smooth_cdam", "integrated_cdam", "gradcam"])
def test_a_head_that_ignores_the_target_is_an_error_that_says_why(
    vit: Any, images: Tensor, method: str, engine: str
) -> None:
    nn.init.zeros_(vit.head.weight)
    with pytest.raises(ModelError, match=r"weights are zero, or the score is saturated|or it has saturated"):
        explain(vit, images, 0, method, engine=engine)
