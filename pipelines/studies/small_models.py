"""Two small classifiers that learn the made photographs in a minute on one core: ``made_vit`` and ``made_vgg``.

They stand in timm's own register of architectures, so that every function here that takes a model's name takes theirs.
``made_vit``: 64 px, patches of 8 px, 96 channels, 4 blocks, CLS token. ``made_vgg``: VGG's order (convolutions without
normalisation, pooling, two linear layers behind a flattened grid), 3 stages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import atomic_path, write_json
from lidc_xai.progress import track
from studies.made_photos import CLASSES, MadePhotos

SMALL_MODELS = ("made_vit", "made_vgg")
SIZE = 64
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_BATCH = 50
_RATE = 1e-3

default_cfgs = generate_default_cfgs(
    {
        name: {
            "url": "",
            "num_classes": len(CLASSES),
            "input_size": (3, SIZE, SIZE),
            "mean": _MEAN,
            "std": _STD,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
        }
        for name in SMALL_MODELS
    }
)
_CONFIG_NAMES = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


class MadeVGG(nn.Module):
    """VGG's order at a small size. ``features``: (B,3,64,64) → (B,48,8,8); ``classifier``: → (B, num_classes)."""

    def __init__(self, num_classes: int = len(CLASSES), widths: tuple[int, ...] = (16, 32, 48)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            for _ in range(2):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
                before = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(before * 16, 64), nn.ReLU(inplace=True), nn.Linear(64, num_classes)
        )
        for module in self.features:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.pool(self.features(images)))
        return scores


@register_model
def made_vit(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """A ViT of 0.5 million parameters; ``options`` are timm's (num_classes, img_size, …)."""
    usual = {"img_size": SIZE, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3}
    model = VisionTransformer(**{**usual, "num_classes": len(CLASSES), **_own(options)})
    return _described(model, "made_vit", pretrained)


@register_model
def made_vgg(pretrained: bool = False, **options: Any) -> MadeVGG:
    """A VGG of 0.1 million parameters; ``options``: num_classes, widths."""
    return _described(MadeVGG(**_own(options)), "made_vgg", pretrained)


def train_small(
    name: str, photos: MadePhotos, file: Path | str, *, epochs: int = 12, seed: int = 0, device: str = "cpu"
) -> float:
    """Train ``made_vit`` or ``made_vgg`` on ``photos``, write ``file`` (safetensors) and a JSON of its name beside it.

    Returns the accuracy on the images that were kept apart. A file that is there, with the same options, is kept.
    Raises ``UsageError`` for another name, or a file that was trained with other options.
    """
    if name not in SMALL_MODELS:
        raise UsageError(f"small models are {', '.join(SMALL_MODELS)}, not {name!r}")
    file = Path(file)
    told = file.with_suffix(".json")
    about = {"model": name, "seed": seed, "epochs": epochs, "photos": photos.about}
    if file.is_file() and told.is_file():
        known = json.loads(told.read_text(encoding="utf-8"))
        if {key: known.get(key) for key in about} != about:
            raise UsageError(f"{file}: was trained with other options; delete it, or choose another folder")
        return float(known["accuracy"])
    images, labels = _read(photos, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build = {"made_vit": made_vit, "made_vgg": made_vgg}[name]
        model: nn.Module = build().to(device)
        _fit(model, images, labels, epochs, seed, device, name)
    accuracy = _accuracy(model, *_read(photos, "val"), device)
    with atomic_path(file) as temporary:
        save_file({key: value.cpu().contiguous() for key, value in model.state_dict().items()}, temporary)
    write_json(told, {**about, "accuracy": accuracy})
    return accuracy


def _fit(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int, device: str, name: str) -> None:
    """AdamW with a warm-up and a cosine; images are mirrored and shifted at random."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(images) // _BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=_RATE, total_steps=steps, pct_start=0.15)
    loss = nn.CrossEntropyLoss(label_smoothing=0.05)
    model.train()
    for _ in track(range(epochs), f"train {name}, seed {seed}", epochs):
        for rows in torch.randperm(len(images), generator=generator).split(_BATCH):
            batch = _moved(images[rows], generator).to(device)
            optimiser.zero_grad()
            loss(model(batch), labels[rows].to(device)).backward()
            optimiser.step()
            schedule.step()
    model.eval()


def _moved(images: Tensor, generator: torch.Generator) -> Tensor:
    """The batch mirrored or not, and shifted by up to 4 px in each direction (what leaves on one side comes back)."""
    if torch.rand(1, generator=generator).item() < 0.5:
        images = images.flip(-1)
    shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
    return images.roll(shift, dims=(-2, -1))


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor, device: str) -> float:
    with torch.no_grad():
        predicted = [model(batch.to(device)).argmax(-1).cpu() for batch in images.split(_BATCH)]
    return float((torch.cat(predicted) == labels).double().mean())


def _read(photos: MadePhotos, part: str) -> tuple[Tensor, Tensor]:
    """(n, 3, 64, 64) normalised images of "train" or "val", and their classes."""
    pixels, labels = [], []
    for path, label in photos.singles(part):
        with Image.open(path) as opened:
            pixels.append(np.asarray(opened.convert("RGB")))
        labels.append(label)
    if not pixels or pixels[0].shape[:2] != (SIZE, SIZE):
        raise DataError(f"{photos.folder}: the small models want images of {SIZE} px, got {photos.about['size']}")
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
    return (images - mean) / std, torch.tensor(labels)


def _own(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in _CONFIG_NAMES}


def _described(model: Any, name: str, pretrained: bool) -> Any:
    """The model with its configuration, as timm's own builders leave it."""
    if pretrained:
        raise UsageError(f"{name} has no published weights; train it, or give a file")
    config = default_cfgs[name].default.to_dict()
    model.pretrained_cfg = model.default_cfg = config
    return model
