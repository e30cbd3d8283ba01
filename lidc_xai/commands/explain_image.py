"""``lidc-xai explain-image``: why an ordinary classifier sees in a photograph what it sees."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from lidc_xai.commands.common import need_out, pick_device, verb, words
from lidc_xai.config import Config
from lidc_xai.run import Run


class ExplainImageConfig(Config):
    """Explain photographs: any timm or torchvision classifier, several classes and methods side by side.

    Writes <photograph>/panel.png, maps.npz (raw signed maps) and values.json. Classes are given by number, by name or
    by WordNet synset; without --target the most probable ones are explained.
    """

    images: list[Path] = Field([], description="Pictures, or folders of them.")
    model: str | None = Field(None, description="A timm or torchvision name (torchvision:NAME); several by commas.")
    weights: str = Field("pretrained", description="pretrained, random (labelled so), or a file; one per model.")
    target: list[str] = Field([], description="Classes (243, boxer, n02108089); repeat it or separate by commas.")
    method: list[str] = Field([], description="Methods, separated by commas, or all. [default: cdam; gradcam on a CNN]")
    score: str | None = Field(
        None,
        description="logit, probability, log_probability, log_odds, mean_contrast or max_contrast, for all methods.",
    )
    top: int = Field(2, ge=1, description="How many predicted classes without --target.")
    fit: str = Field("crop", description="crop: the centre, as classifiers are evaluated; whole: stretched to fit.")
    size: int | None = Field(None, ge=1, description="Side of the model's input in pixels.")
    labels: Path | None = Field(None, description="Class names, one a line, for a classifier that is not ImageNet's.")
    max_batch: int = Field(8, ge=1, description="Copies of a photograph in one pass.")
    options: dict[str, object] = Field({}, description="Options of the methods, by --set options.samples=20.")


@verb(
    "lidc-xai explain-image catdog.png --model vit_base_patch16_224 --weights vit.safetensors "
    "--target boxer,'tiger cat' --method cdam,gradcam --out runs/photos",
    argument="images",
)
def explain_image(config: ExplainImageConfig, run: Run) -> None:
    """Load, explain, write."""
    from lidc_xai.errors import UsageError

    if config.model is None:
        raise UsageError("--model is missing: name a timm or torchvision classifier, for example --model resnet50")
    out = need_out(config)
    device = pick_device(config.device)
    from lidc_xai.imagenet import explain_images

    explained = explain_images(
        config.images,
        config.model,
        out,
        weights=config.weights,
        targets=words(config.target),
        methods=words(config.method),
        score=config.score,
        top=config.top,
        fit=config.fit,
        size=config.size,
        labels=config.labels,
        device=device,
        seed=config.seed,
        max_batch=config.max_batch,
        options=config.options,
    )
    run.skipped += explained.skipped
    run.results = {"explained": len(explained.folders), "weights": config.weights}
    for folder in explained.folders:
        print(folder / "panel.png")
