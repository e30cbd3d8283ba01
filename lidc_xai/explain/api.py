"""``explain``: check what was given, run the methods on one shared pass, and hand back raw signed relevance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, overload

import torch
from torch import Tensor, nn

from lidc_xai.errors import ModelError
from lidc_xai.explain import targets as target_module
from lidc_xai.explain.abilities import why_not
from lidc_xai.explain.checks import check_images, check_outputs
from lidc_xai.explain.explanation import Explanation
from lidc_xai.explain.networks.changed_backward import LIBRA
from lidc_xai.explain.networks.common_trunk import common_blocks
from lidc_xai.explain.networks.context import Context, Pass, Result
from lidc_xai.explain.networks.manners import borrowed, in_float32, one_line
from lidc_xai.explain.registry import MAX_BATCH, Method, find_method, method_options
from lidc_xai.explain.targets import (
    Outputs,
    TargetSet,
    TargetsLike,
    check_batch,
    combine_maps,
    output_spec,
    resolve,
    select_targets,
    without_map_contrasts,
)


@overload
def explain(
    model: nn.Module, images: Tensor, targets: TargetsLike = None, method: str = "cdam", **options: Any
) -> Explanation: ...
@overload
def explain(
    model: nn.Module, images: Tensor, targets: TargetsLike = None, *, method: Sequence[str], **options: Any
) -> dict[str, Explanation]: ...
@overload
def explain(
    model: nn.Module, images: Tensor, targets: TargetsLike, method: Sequence[str], **options: Any
) -> dict[str, Explanation]: ...
def explain(
    model: nn.Module,
    images: Tensor,
    targets: TargetsLike = None,
    method: str | Sequence[str] = "cdam",
    **options: Any,
) -> Explanation | dict[str, Explanation]:
    """Why does ``model`` give these scores for these images?

    ``images``: (B, C, H, W), float, normalised as the model wants them; moved to the model's device and dtype.
    ``targets``: None (a classifier's predicted class, every output of a nodule model), an index, an output's name, a
    ``Target``, a list of T of those for every image, or a LongTensor (B,) or (B, T) of classes.
    ``method``: a name of ``list_methods()``, or several, which then share the passes that they have in common and
    come back as a dict. ``options``: the methods' own (docs/explain.md); several methods each take those they have.

    Raises ``TypeError`` for an option that no asked method has, ``UsageError`` for images, targets or values that do
    not fit, ``ModelError`` where the model cannot do the method. The model and the random state are left as found.

    >>> found = explain(vit, images, [0, 3], method=["cdam", "attention"])
    >>> found["cdam"].relevance.shape, found["cdam"].engine
    (torch.Size([2, 2, 4, 4]), 'exact')
    >>> explain(vit, images, method="saliency").relevance.shape      # the predicted class, on pixels
    torch.Size([2, 1, 32, 32])
    """
    names = [method] if isinstance(method, str) else list(method)
    results = _explain_model(model, images, targets, names, options)
    return results[names[0]] if isinstance(method, str) else results


def explain_each(
    models: Sequence[nn.Module],
    images: Tensor,
    targets: TargetsLike = None,
    method: Sequence[str] = ("cdam",),
    *,
    common: Sequence[int] | None = None,
    **options: Any,
) -> list[dict[str, Explanation]]:
    """``explain`` the same images by several models; the blocks that they share with the first one run once.

    ``common``: per model, how many leading blocks have the first model's weights (``common_blocks``), where the caller
    has compared them already. Models of other architectures share nothing and may stand in the list.

    >>> from copy import deepcopy
    >>> other = deepcopy(vit)
    >>> first, second = explain_each([vit, other], images, 1)
    >>> torch.equal(first["cdam"].relevance, second["cdam"].relevance)
    True
    """
    depths = common_blocks(models) if common is None else common
    wanted = sorted({depth for depth in depths[1:] if depth})
    kept: dict[int, Tensor] = {}

    def keep(shared: Pass) -> None:
        if shared.parts is not None:
            kept.update({depth: shared.tokens(depth) for depth in wanted})

    def begin(depth: int) -> Callable[[Pass], None]:
        return lambda shared: shared.start_from(depth, kept[depth]) if depth in kept else None

    starts = [keep, *(begin(depth) for depth in depths[1:])]
    return [
        _explain_model(model, images, targets, list(method), options, start)
        for model, start in zip(models, starts, strict=True)
    ]


def _explain_model(
    model: nn.Module,
    images: Tensor,
    targets: TargetsLike,
    names: list[str],
    options: Mapping[str, Any],
    start: Callable[[Pass], None] | None = None,
) -> dict[str, Explanation]:
    """Every named method on one shared pass; ``start`` is given that pass before anything is computed."""
    methods = [find_method(name) for name in names]
    filled = method_options(methods, options)
    results = {}
    with borrowed(model), in_float32(model) as was_half, one_line(model):
        images = check_images(model, images)
        check_batch(targets, len(images))
        shared = Pass(model, images)
        if start is not None:
            start(shared)
        for row in methods:
            reason = why_not(row, shared)
            if reason is not None:
                raise ModelError(f"{row.name} cannot explain this model: {reason}")
        for row, chosen in zip(methods, filled, strict=True):
            explanation = _explain(shared, row, targets, chosen)
            results[row.name] = (
                replace(explanation, precision="float32, from half-precision weights") if was_half else explanation
            )
    return results


def _explain(shared: Pass, method: Method, targets: TargetsLike, options: dict[str, Any]) -> Explanation:
    """One method on all images, in chunks where its passes keep gradients or copies."""
    module, function = method.where.split(":")
    compute = getattr(import_module(f"lidc_xai.explain.{module}"), function)
    size = options.get("max_batch", MAX_BATCH.default) if method.per_image else len(shared.images)
    parts, runs = [], []
    for start in range(0, len(shared.images), size):
        rows = slice(start, start + size)
        run = shared if size >= len(shared.images) else shared.select(rows)
        chosen_options = {name: _option_of(value, rows, len(shared.images)) for name, value in options.items()}
        runs.append(run)
        parts.append(_explain_chunk(run, compute, method, select_targets(targets, rows), chosen_options))
    if size < len(shared.images):
        shared.adopt(runs)
    return _join(parts, method, shared, options)


def _explain_chunk(
    run: Pass, compute: Callable[..., Result], method: Method, targets: TargetsLike, options: dict[str, Any]
) -> tuple[Result, Tensor, TargetSet]:
    """(result, values, targets) of some of the images."""
    default = getattr(target_module, method.target)
    asked: list[TargetSet] = []

    def resolve_targets(outputs: Outputs) -> TargetSet:
        check_outputs(run.model, outputs.values)
        spec = output_spec(run.model, outputs.values.shape[-1])
        asked.append(resolve(targets, spec, len(run.images), lambda: outputs.values, default))
        return without_map_contrasts(asked[0])

    context = Context(
        run,
        resolve_targets,
        max_batch=options.get("max_batch", MAX_BATCH.default),
        seed=int(options.get("seed", 0)),
        engine=options.get("engine", "auto"),
    )
    if options.get("backward") == "libra":
        context.change_backward(LIBRA)
    common = ("max_batch", "seed", "engine", "backward")
    result = compute(context, **{name: value for name, value in options.items() if name not in common})
    count = len(context.targets)
    relevance = result.relevance.detach()
    if relevance.shape[1] == 1 and count > 1:
        relevance = relevance.expand(-1, count, -1, -1).clone()
    relevance = combine_maps(asked[0], relevance, run.outputs.values)
    with torch.no_grad():
        values = asked[0].scores(run.outputs)
    return replace(result, relevance=relevance), values, asked[0]


def _join(
    parts: list[tuple[Result, Tensor, TargetSet]], method: Method, shared: Pass, options: dict[str, Any]
) -> Explanation:
    results, values, targets = zip(*parts, strict=True)
    relevance = torch.cat([result.relevance for result in results])
    images = shared.images
    size = (images.shape[-2], images.shape[-1])
    on_tokens = shared.vit is not None and tuple(relevance.shape[-2:]) == shared.vit.grid(images)
    return Explanation(
        relevance=relevance,
        values=torch.cat(values),
        columns=torch.cat([part.columns for part in targets]),
        target_names=targets[0].names,
        method=method.name,
        engine=results[0].engine,
        precision=str(relevance.dtype).removeprefix("torch."),
        image_size=size,
        covered=shared.vit.covered(images) if on_tokens and shared.vit is not None else size,
        options=options,
        extras={  # tensors are per image and are joined along it; anything else is the same for all
            name: torch.cat([one.extras[name].detach() for one in results]) if isinstance(value, Tensor) else value
            for name, value in results[0].extras.items()
        },
    )


def _option_of(value: Any, rows: slice, batch: int) -> Any:
    """An option's value for some of the images: an image for each of them is cut like the batch."""
    return value[rows] if isinstance(value, Tensor) and value.ndim == 4 and len(value) == batch else value
