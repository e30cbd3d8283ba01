"""Explain photographs: a sheet of maps, the raw maps and the numbers, one folder per photograph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.explain import (
    Explanation,
    Logit,
    LogOdds,
    LogProbability,
    MaxContrast,
    MeanContrast,
    Probability,
    Target,
    explain,
    list_methods,
)
from lidc_xai.explain.registry import METHODS, find_method, method_options
from lidc_xai.imagenet import several_models
from lidc_xai.imagenet.class_names import checked_index
from lidc_xai.imagenet.classifier import RANDOM, Classifier, class_logits, load_classifier
from lidc_xai.imagenet.panel import write_photo_files
from lidc_xai.imagenet.photographs import Photo, find_photos, read_photo
from lidc_xai.progress import say, track
from lidc_xai.skipped import Skipped

SCORES: Mapping[str, type[Target]] = {
    "logit": Logit,
    "probability": Probability,
    "log_probability": LogProbability,
    "log_odds": LogOdds,
    "mean_contrast": MeanContrast,
    "max_contrast": MaxContrast,
}
_PREDICTED_SHOWN = 5


@dataclass
class ExplainedImages:
    """``folders``: one per photograph that was explained, in the order given. ``skipped``: what could not be read."""

    folders: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def explain_images(
    paths: Sequence[Path | str],
    model: str,
    out: Path | str,
    *,
    weights: str | Path = "pretrained",
    targets: Sequence[str | int] = (),
    methods: Sequence[str] = (),
    score: str | None = None,
    top: int = 2,
    fit: str = "crop",
    size: int | None = None,
    labels: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    max_batch: int = 8,
    options: Mapping[str, Any] | None = None,
) -> ExplainedImages:
    """Explain every photograph with every method for every class; returns the folders that were written under ``out``.

    ``paths``: pictures, or folders of them. ``model``, ``weights``, ``size``, ``labels``: see ``load_classifier``.
    Several models (names, and files of weights, separated by commas) give their mean map on the coarsest grid among
    them, its standard error and how far they agree.
    ``targets``: classes by number, name or synset; none: the ``top`` most probable ones of each photograph.
    ``methods``: names of ``list_methods()``, "all" for those that the model can do; none: CDAM on a ViT that can do
    it, else GradCAM. ``score``: what is explained of a class, a key of ``SCORES``; None: each method's own default (the
    logit; the probability for ReciproCAM and RSI-GradCAM). ``fit``: "crop" or "whole".
    ``options``: the methods' own.

    Each folder holds panel.png, maps.npz (raw signed maps, the pixels seen, a description as JSON text) and
    values.json. A photograph that cannot be read is listed in ``skipped``; ``DataError`` where none can.

    >>> from PIL import Image
    >>> Image.new("RGB", (40, 40), "teal").save(folder / "teal.png")
    >>> explain_images([folder / "teal.png"], "test_vit", folder / "explained", weights="random").folders[0].name
    'teal'
    """
    if score is not None and score not in SCORES:
        raise UsageError(f"score is one of {', '.join(SCORES)}, not {score!r}")
    if top < 1:
        raise UsageError(f"top is a number of classes from 1, not {top}")
    photos = find_photos(paths)
    given = dict(options or {})
    _check_options([find_method(name).name for name in methods if name != "all"] or list(METHODS), given)
    classifiers = _load_each(model, weights, device, size=size, labels=labels, seed=seed)
    classifier = classifiers[0]
    wanted = [_find_class(classifier, target) for target in targets]
    names = _methods_for([one.model for one in classifiers], methods)
    given = _with_common(names, given, seed, max_batch)

    def explained(one: Classifier, image: Tensor, classes: Sequence[int]) -> dict[str, Explanation]:
        asked = [index if score is None else SCORES[score](index) for index in classes]
        return explain(one.model, image, asked, names, **given)

    def by_one(path: Path, folder: Path) -> None:
        photo = read_photo(path, classifier.spec, fit)
        image = photo.tensor.to(device)
        logits = class_logits(classifier, image, path)
        classes = wanted or _most_probable(logits, top)
        _write(folder, photo, classifier, logits, classes, score, fit, explained(classifier, image, classes))

    def by_several(path: Path, folder: Path) -> None:
        several_models.explain_photo(path, classifiers, fit, wanted, top, device, explained, folder)

    if len(classifiers) > 1:
        several_models.check_alike(classifiers)
    write = by_several if len(classifiers) > 1 else by_one
    return _each_photo(photos, Path(out), write)


def _load_each(
    model: str, weights: str | Path, device: str, *, size: int | None, labels: Path | None, seed: int
) -> list[Classifier]:
    """The classifiers that are named, on the device; one file of weights for each, or the same word for all."""
    names = [name.strip() for name in model.split(",") if name.strip()]
    files = [part.strip() for part in str(weights).split(",")] if len(names) > 1 else [str(weights)]
    if len(files) not in (1, len(names)):
        raise UsageError(f"weights: {len(files)} were given for {len(names)} models; give one for each, or one for all")
    pairs = zip(names, files if len(files) > 1 else files * len(names), strict=True)
    classifiers = [load_classifier(name, file, size=size, labels=labels, seed=seed) for name, file in pairs]
    for one in classifiers:
        if one.random:
            say(f"{one.name}: {RANDOM}")
        one.model.to(device)
    return classifiers


def _each_photo(photos: Sequence[Path], out: Path, write: Callable[[Path, Path], None]) -> ExplainedImages:
    """``write(photograph, folder)`` for each; one that cannot be read is skipped. ``DataError`` where none was read."""
    result, folders = ExplainedImages(), _folders(photos, out)
    for path in track(photos, "explain photographs", len(photos)):
        try:
            write(path, folders[path])
        except DataError as error:
            result.skipped.append(Skipped(path.name, "read", str(error)))
            continue
        result.folders.append(folders[path])
    if not result.folders:
        raise DataError(f"none of {len(photos)} pictures could be read; first: {result.skipped[0].reason}")
    return result


def _check_options(names: Sequence[str], options: Mapping[str, Any]) -> None:
    try:
        method_options([METHODS[name] for name in names], options)
    except TypeError as error:
        raise UsageError(str(error)) from None


def _with_common(names: Sequence[str], options: Mapping[str, Any], seed: int, max_batch: int) -> dict[str, Any]:
    """The caller's options, and seed and max_batch where one of the methods has them."""
    known = {option for name in names for option in METHODS[name].options}
    common = {"seed": seed, "max_batch": max_batch}
    return {**{name: value for name, value in common.items() if name in known}, **options}


def _find_class(classifier: Classifier, target: str | int) -> int:
    if classifier.classes is not None:
        return classifier.classes.find(str(target))
    try:
        return checked_index(int(target), classifier.count)
    except ValueError:
        raise UsageError(
            f"class {target!r}: {classifier.name} with {classifier.count} outputs is no ImageNet classifier whose "
            "names are known here; give numbers, or a file with one name per line as --labels"
        ) from None


def _methods_for(models: Sequence[nn.Module], methods: Sequence[str]) -> list[str]:
    """Those asked for; "all": those that every model can do; none: the usual one of the first that all can do."""
    each = [list_methods(model) for model in models]
    able = [name for name in each[0] if all(name in others for others in each)]
    if not methods:
        return ["cdam" if "cdam" in able else "gradcam"]
    return list(dict.fromkeys(name for method in methods for name in (able if method == "all" else [method])))


def _most_probable(logits: Tensor, top: int) -> list[int]:
    return logits.topk(min(top, len(logits))).indices.tolist()


def _folders(photos: Sequence[Path], out: Path) -> dict[Path, Path]:
    """A folder per photograph, named after it; a number is added where names repeat."""
    folders: dict[Path, Path] = {}
    for path in photos:
        folder, number = out / path.stem, 2
        while folder in folders.values():
            folder, number = out / f"{path.stem}-{number}", number + 1
        folders[path] = folder
    return folders


def _write(
    folder: Path,
    photo: Photo,
    classifier: Classifier,
    logits: Tensor,
    classes: list[int],
    score: str | None,
    fit: str,
    explanations: Mapping[str, Explanation],
) -> None:
    """The three files of one photograph; ``values.json`` has everything but the maps."""
    probabilities = logits.softmax(-1) if len(logits) > 1 else logits.sigmoid()

    def entry(index: int) -> dict[str, Any]:
        synset = classifier.classes.synset(index) if classifier.classes else None
        full = classifier.classes.names[index] if classifier.classes else f"class {index}"
        probability = float(probabilities[index])
        return {"class": index, "name": classifier.label(index), "all_names": full, "synset": synset,
                "logit": float(logits[index]), "probability": probability}  # fmt: skip

    targets = [entry(index) for index in classes]
    values = {
        "image": photo.path.name,
        "model": classifier.name,
        "weights": classifier.weights,
        "random_weights": classifier.random,
        **({"warning": RANDOM} if classifier.random else {}),
        "input": {
            "size": list(classifier.spec.size),
            "fit": fit,
            "photograph": list(photo.full),
            "seen_box": list(photo.box),
        },
        "predicted": [entry(index) for index in _most_probable(logits, _PREDICTED_SHOWN)],
        "score": score or "each method's own",
        "targets": targets,
        "methods": {name: _method_values(result) for name, result in explanations.items()},
    }
    for name, result in explanations.items():
        for note in result.notes:
            say(f"{photo.path.name}: {name}: {note}")
    maps = {name: result.relevance[0].float().cpu().numpy() for name, result in explanations.items()}
    rows = [f"{one['name']}\nlogit {one['logit']:.3g}, p {one['probability']:.3f}" for one in targets]
    title = f"{photo.path.name}: {classifier.name}, {classifier.weights['source']} weights"
    write_photo_files(folder, photo, values, maps, rows, title, RANDOM if classifier.random else None)


def _method_values(result: Explanation) -> dict[str, Any]:
    """How a method ran, and the range of each class's map; tensors of options and extras are given where small."""
    flat = result.relevance[0].flatten(1)
    return {
        "engine": result.engine,
        "explained": list(result.target_names),
        "values": result.values[0].tolist(),
        "grid": list(result.relevance.shape[-2:]),
        "options": {name: _plain(value) for name, value in result.options.items()},
        "extras": {name: _plain(value) for name, value in result.extras.items()},
        "notes": list(result.notes),
        "minimum": flat.amin(1).tolist(),
        "maximum": flat.amax(1).tolist(),
        "sum": flat.sum(1).tolist(),
    }


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor) and value.numel() <= 1000 and value.isfinite().all():
        return value.detach().cpu().tolist()
    return f"{type(value).__name__}{list(value.shape) if isinstance(value, Tensor) else ''}"
