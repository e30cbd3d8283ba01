"""Beside captum and pytorch-grad-cam, where they overlap; what they do otherwise is a row with its reason."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import captum.attr as captum
import cv2
import numpy as np
import pytest
import pytorch_grad_cam as grad_cam
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from lidc_xai.explain import explain

CLASSES = torch.tensor([3, 0, 2])
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


def noise_tunnel(model: nn.Module, images: Tensor) -> Tensor:
    """captum draws its noise from the global generator, for one image at a time in our order."""
    maps = []
    for b in range(len(images)):
        torch.manual_seed(11)
        tunnel = captum.NoiseTunnel(captum.Saliency(model))
        image = images[b : b + 1]
        maps.append(tunnel.attribute(image, target=CLASSES[b : b + 1], nt_samples=4, stdevs=0.3, abs=False))
    return torch.cat(maps).sum(1)


CAPTUM: dict[str, tuple[str, dict[str, Any], Callable[[nn.Module, Tensor], Tensor]]] = {
    "saliency": (
        "saliency", {},
        lambda m, x: captum.Saliency(m).attribute(x, target=CLASSES, abs=False).sum(1),
    ),
    "saliency, its default abs=True": (
        "saliency", {"reduce": "abs_sum"},
        lambda m, x: captum.Saliency(m).attribute(x, target=CLASSES).sum(1),
    ),
    "input_x_gradient": (
        "input_x_gradient", {},
        lambda m, x: captum.InputXGradient(m).attribute(x, target=CLASSES).sum(1),
    ),
    "integrated_gradients": (
        "integrated_gradients", {"steps": 12},
        lambda m, x: captum.IntegratedGradients(m).attribute(x, target=CLASSES, n_steps=12).sum(1),
    ),
    **{
        f"integrated_gradients, {rule}": (
            "integrated_gradients", {"steps": 8, "rule": rule},
            lambda m, x, rule=rule: captum.IntegratedGradients(m)
            .attribute(x, target=CLASSES, n_steps=8, method=f"riemann_{rule.replace('midpoint', 'middle')}").sum(1),
        )
        for rule in ("right", "left", "midpoint")
    },
    # its trapezoid weighs n points by 1/n although they are 1/(n − 1) apart: its weights sum to (n − 1)/n
    "integrated_gradients, trapezoid": (
        "integrated_gradients", {"steps": 8, "rule": "trapezoid"},
        lambda m, x: 8 / 7 * captum.IntegratedGradients(m)
        .attribute(x, target=CLASSES, n_steps=8, method="riemann_trapezoid").sum(1),
    ),
    "smoothgrad, the same noise": (
        "smoothgrad", {"samples": 4, "sigma": 0.3, "relative": False, "seed": 11}, noise_tunnel,
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", ["cnn", "resnet", "vit"])
@pytest.mark.parametrize("row", CAPTUM)
def test_captum(request: pytest.FixtureRequest, images: Tensor, model: str, row: str) -> None:
    network = request.getfixturevalue(model)
    method, options, theirs = CAPTUM[row]
    close = CLOSE
    if "noise" in row:  # captum draws in single precision
        network, images, close = deepcopy(network).float(), images.float(), {"rtol": 1e-4, "atol": 1e-4}
    ours = explain(network, images, CLASSES, method, **options).relevance[:, 0]
    torch.testing.assert_close(ours, theirs(network, images).detach(), **close)


@pytest.mark.parametrize(
    ("model", "layer"), [("cnn", "4"), ("cnn", "7"), ("resnet", "layer3.0"), ("resnet", "layer4.0.conv2")]
)
def test_captum_layer_gradcam(request: pytest.FixtureRequest, images: Tensor, model: str, layer: str) -> None:
    network = request.getfixturevalue(model)
    module = network.get_submodule(layer)
    ours = explain(network, images, CLASSES, "gradcam", layer=layer).relevance[:, 0]
    theirs = captum.LayerGradCam(network, module).attribute(images, target=CLASSES)[:, 0].detach()
    torch.testing.assert_close(ours, theirs, **CLOSE)


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, y: Tensor) -> Tensor:
        return self.factor * y


def as_grad_cam_shows(maps: Tensor) -> np.ndarray:
    """What pytorch-grad-cam makes of a map: rectified, min-max, resized by OpenCV, min-max again; never raw."""
    shown = []
    for image in maps.clamp_min(0).numpy():
        image = image - image.min()
        image = cv2.resize(np.float32(image / (1e-7 + image.max())), (24, 16))
        image = image - image.min()
        shown.append(image / (1e-7 + image.max()))
    return np.stack(shown)


def theirs_of(
    kind: type[grad_cam.base_cam.BaseCAM], model: nn.Module, layer: str, images: Tensor, **more: Any
) -> np.ndarray:
    with kind(model=model, target_layers=[model.get_submodule(layer)], **more) as cam:
        return cam(input_tensor=images, targets=[ClassifierOutputTarget(int(c)) for c in CLASSES])


GRAD_CAM = {
    "gradcam": ("gradcam", grad_cam.GradCAM),
    "linear_approximation": ("linear_approximation", grad_cam.HiResCAM),
    "xgradcam": ("xgradcam", grad_cam.XGradCAM),
    "gradcam_plus_plus": ("gradcam_plus_plus", grad_cam.GradCAMPlusPlus),
}


@pytest.mark.parametrize(("model", "layer"), [("cnn", "8"), ("resnet", "layer4.0"), ("resnet", "layer4.0.conv2")])
@pytest.mark.parametrize("row", GRAD_CAM)
def test_grad_cam(request: pytest.FixtureRequest, images: Tensor, model: str, layer: str, row: str) -> None:
    network = request.getfixturevalue(model)
    method, kind = GRAD_CAM[row]
    ours = as_grad_cam_shows(explain(network, images, CLASSES, method, layer=layer, relu=True).relevance[:, 0])
    theirs = theirs_of(kind, network, layer, images)
    before_relu = layer.endswith("conv2")
    if row == "xgradcam" and before_relu:
        # its denominator ΣA passes through 0 where activations may be negative; ours is Σ|A|
        assert np.abs(ours - theirs).max() > 1e-2
    elif row == "gradcam_plus_plus" and before_relu:
        # its weights keep the sign of a negative denominator, where the paper's α has no meaning; ours are 0 there
        assert np.abs(ours - theirs).max() > 1e-2
    elif row == "gradcam_plus_plus":
        # it adds 1e-6 to a denominator that is as small as g², so that weights of small gradients vanish: equal only
        # where gradients are large
        large = nn.Sequential(network, Times(1e4))
        ours = as_grad_cam_shows(explain(large, images, CLASSES, method, layer=f"0.{layer}", relu=True).relevance[:, 0])
        np.testing.assert_allclose(ours, theirs_of(kind, large, f"0.{layer}", images), atol=1e-4)
    else:
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("layer", [1, -1])
@pytest.mark.parametrize("row", ["gradcam", "linear_approximation"])
def test_grad_cam_on_a_vit(vit: nn.Module, images: Tensor, row: str, layer: int) -> None:
    """With the reshape function that it asks the caller for."""
    method, kind = GRAD_CAM[row]
    ours = as_grad_cam_shows(explain(vit, images, CLASSES, method, layer=layer).relevance[:, 0])
    theirs = theirs_of(
        kind, vit, f"blocks.{layer % 3}.norm1", images,
        reshape_transform=lambda t: t[:, 1:].transpose(1, 2).reshape(len(t), -1, 4, 6),
    )  # fmt: skip
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_grad_cam_before_an_in_place_relu_reads_the_rectified_map(cnn: nn.Sequential, images: Tensor) -> None:
    """On a CPU its activations share memory with what the ReLU overwrites; the gradient is that before the ReLU."""
    theirs = theirs_of(grad_cam.GradCAM, cnn, "7", images)
    ours = as_grad_cam_shows(explain(cnn, images, CLASSES, "gradcam", layer="7").relevance[:, 0])
    assert np.abs(ours - theirs).max() > 1e-2
    copying = nn.Sequential(*[nn.ReLU() if isinstance(module, nn.ReLU) else module for module in cnn])
    np.testing.assert_allclose(ours, theirs_of(grad_cam.GradCAM, copying, "7", images), atol=1e-5)


def test_grad_cam_fullgrad_scales_every_channel_alone(cnn: nn.Sequential, images: Tensor) -> None:
    """It scales each channel to [0, 1] by itself, so that a channel's weight against the others is lost; the method's
    authors scale all channels of a layer together, as ``post="abs_minmax"`` does."""
    ours = explain(cnn, images, CLASSES, "fullgrad", post="abs_minmax").relevance[:, 0]
    low, high = ours.amin((1, 2), keepdim=True), ours.amax((1, 2), keepdim=True)
    with grad_cam.FullGrad(model=cnn, target_layers=[]) as cam:
        theirs = cam(input_tensor=images, targets=[ClassifierOutputTarget(int(c)) for c in CLASSES])
    assert np.abs(((ours - low) / (high - low)).numpy() - theirs).max() > 0.05
