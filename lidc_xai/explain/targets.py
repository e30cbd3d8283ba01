"""What is explained: one scalar per image, made from the model's outputs or from the vector that its head reads.

With outputs y (C), t the asked output and p = softmax(y):

| target            | scalar                              | gradient in logit space              |
|-------------------|-------------------------------------|--------------------------------------|
| Logit             | y_t                                 | e_t                                  |
| Probability       | p_t                                 | p_t (1 − p_t) w                      |
| LogProbability    | log p_t                             | (1 − p_t) w                          |
| LogOdds           | y_t − logsumexp_{s≠t} y_s           | w                                    |
| MeanContrast      | y_t − mean_{s≠t} y_s                | e_t, −1/(C − 1) elsewhere            |
| MaxContrast       | y_t − max_{s≠t} y_s                 | e_t − e_{s*}                         |
| ConceptSimilarity | ⟨l, c⟩, cos(l, c) or −‖l − c‖       | (of l, the vector that the head reads)|

with w = e_t − Σ_{s≠t} α_s e_s and α the softmax of the logits without t: LogOdds is the weighted contrast, in one
backward pass and without underflow. On a binary output p = sigmoid(y_t), and LogOdds is y_t itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.explain.networks.outputs import Outputs as Outputs
from lidc_xai.explain.networks.outputs import OutputSpec

OutputRef = int | str | Tensor | None
"""An output: its column, its name, a column per image (LongTensor (B,)), or None for each image's predicted class."""


def output_spec(model: nn.Module, count: int) -> OutputSpec:
    """What ``model``'s ``count`` outputs mean: as it says itself, else one class per column, else one binary logit."""
    names, kinds = getattr(model, "output_names", None), getattr(model, "output_kinds", None)
    if names is not None and kinds is not None:
        return OutputSpec(tuple(kinds), tuple(names))
    config = getattr(model, "config", None)
    if hasattr(config, "id2label"):
        return _transformers_spec(config, count)
    return OutputSpec(("class",) * count if count > 1 else ("binary",))


def _transformers_spec(config: Any, count: int) -> OutputSpec:
    """What a transformers ``config`` says: the kind of problem, and labels where they are more than numbers."""
    usual = "class" if count > 1 else "binary"
    problems = {"regression": "regression", "multi_label_classification": "binary"}
    kind = problems.get(str(getattr(config, "problem_type", None)), usual)
    labels = [str(label) for _, label in sorted((config.id2label or {}).items())]
    named = len(set(labels)) == count and not all(label.startswith("LABEL_") for label in labels)
    return OutputSpec((kind,) * count, tuple(labels) if named else None)


@dataclass(frozen=True, eq=False)
class Target(ABC):
    """A scalar per image. ``output`` is an index, a name, a LongTensor (B,), or None for the predicted class.

    >>> explain(vit, images, [Logit(0), Probability(1)]).target_names      # targets of several kinds in one call
    ('0', 'probability(1)')
    """

    output: OutputRef = None

    reads_features: ClassVar[bool] = False
    allowed: ClassVar[tuple[str, ...]] = ("class", "binary")
    label: ClassVar[str] = ""

    @abstractmethod
    def score(self, outputs: Outputs, column: Tensor, sigmoid: bool) -> Tensor:
        """(B, ...) scores of (B, ..., C) outputs for the column (B,) of each image."""

    def check(self, spec: OutputSpec, columns: Tensor) -> None:
        """Refuse an output on which this scalar has no meaning."""
        for column in columns.unique().tolist():
            if spec.kinds[column] not in self.allowed:
                raise UsageError(
                    f"{type(self).__name__} has no meaning on the {spec.kinds[column]} output {spec.name(column)!r}; "
                    "use Logit, which is the raw output of any kind"
                )

    def uses_sigmoid(self, spec: OutputSpec) -> bool:
        return not spec.is_classifier

    def name(self, output: str) -> str:
        return f"{self.label}({output})" if self.label else output


def _gather(values: Tensor, columns: Tensor) -> Tensor:
    """values (B, ..., C) at each image's columns (B, T): (B, ..., T)."""
    index = columns.view(len(columns), *[1] * (values.ndim - 2), -1)
    return values.gather(-1, index.expand(*values.shape[:-1], columns.shape[1]))


def _pick(values: Tensor, column: Tensor) -> Tensor:
    """values (B, ..., C) at each image's column (B,): (B, ...)."""
    return _gather(values, column.unsqueeze(1)).squeeze(-1)


def _others(values: Tensor, column: Tensor) -> Tensor:
    """values with each image's column set to −∞, so that reductions see the other classes alone."""
    is_target = torch.arange(values.shape[-1], device=values.device) == column.unsqueeze(-1)
    return values.masked_fill(is_target.view(-1, *[1] * (values.ndim - 2), values.shape[-1]), -torch.inf)


@dataclass(frozen=True, eq=False)
class Logit(Target):
    """y_t: the raw output of any kind (a logit, or the standardised value of a regression output).

    >>> values = explain(vit, images, Logit(2)).values[:, 0]
    >>> torch.allclose(values, vit(images)[:, 2], atol=1e-5)
    True
    """

    allowed: ClassVar[tuple[str, ...]] = ("class", "binary", "regression")

    def score(self, outputs: Outputs, column: Tensor, sigmoid: bool) -> Tensor:
        return _pick(outputs.values, column)


@dataclass(frozen=True, eq=False)
class _Activated(Target):
    """Targets behind an activation; ``activation="sigmoid"`` for a model whose classes do not exclude each other."""

    activation: str | None = None

    def uses_sigmoid(self, spec: OutputSpec) -> bool:
        if self.activation not in (None, "softmax", "sigmoid"):
            raise UsageError(f"activation is 'softmax' or 'sigmoid', not {self.activation!r}")
        if self.activation == "softmax" and not spec.is_classifier:
            raise UsageError("activation='softmax' needs class logits; this model's outputs are separate")
        return self.activation == "sigmoid" or not spec.is_classifier


@dataclass(frozen=True, eq=False)
class Probability(_Activated):
    """p_t: softmax on class logits, sigmoid on a binary output.

    >>> values = explain(vit, images, Probability(2)).values[:, 0]
    >>> torch.allclose(values, vit(images).softmax(1)[:, 2], atol=1e-5)
    True
    """

    label: ClassVar[str] = "probability"

    def score(self, outputs: Outputs, column: Tensor, sigmoid: bool) -> Tensor:
        y = _pick(outputs.values, column)
        return y.sigmoid() if sigmoid else (y - outputs.values.logsumexp(-1)).exp()


@dataclass(frozen=True, eq=False)
class LogProbability(_Activated):
    """log p_t.

    >>> values = explain(vit, images, LogProbability(2)).values[:, 0]
    >>> torch.allclose(values, vit(images).log_softmax(1)[:, 2], atol=1e-5)
    True
    """

    label: ClassVar[str] = "log_probability"

    def score(self, outputs: Outputs, column: Tensor, sigmoid: bool) -> Tensor:
        y = _pick(outputs.values, column)
        return nn.functional.logsigmoid(y) if sigmoid else y - outputs.values.logsumexp(-1)


@dataclass(frozen=True, eq=False)
class LogOdds(_Activated):
    """y_t − logsumexp_{s≠t} y_s = log p_t/(1 − p_t): the weighted contrast, exactly.

    ``contrast="maps"`` instead explains every logit and subtracts the maps, φ_t − Σ_{s≠t} α_s φ_s. It is the same for
    methods that are linear in the target's gradient and differs for the others (clamped or rectified maps); it costs
    one map per class.

    >>> values = explain(vit, images, LogOdds(2)).values[:, 0]
    >>> torch.allclose(values, torch.logit(vit(images).double().softmax(1)[:, 2]).float(), atol=1e-5)
    True
    """

    contrast: str = "target"
    label: ClassVar[str] = "log_odds"

    def score(self, outputs: Outputs, column: Tensor, sigmoid: bool) -> Tensor:
        y = _pick(outputs.values, column)
        return y if sigmoid else y - _others(outputs.values, column).logsumexp(-1)

    def check(self, spec: OutputSpec, columns: Tensor) -> None:
        super().check(spec, columns)
        if self.contrast not in ("target", "maps"):
            raise UsageError(f"contrast is 'target' or 'maps', not {self.contrast!r}")


@dataclass(frozen=True, eq=False)
class MeanContrast(Target):
    """y_t − Σ_{s≠t} y_s / (C − 1).

    >>> values = explain(vit, images, MeanContrast(2)).values[:, 0]
    >>> torch.allclose(values, vit(images)[:, 2] - vit(images)[:, [0, 1, 3, 4]].mean(1), atol=1e-5)
    True
    """

    allowed: ClassVar[tuple[str, ...]] = ("class",)
    label: ClassVar[str] = "mean_contrast"

    def score(self, outputs: Outputs, column: Tensor, sigmoid: bool) -> Tensor:
        y = _pick(outputs.values, column)
        return y - (outputs.values.sum(-1) - y) / (outputs.values.shape[-1] - 1)


@dataclass(frozen=True, eq=False)
class MaxContrast(Target):
    """y_t − max_{s≠t} y_s.

    >>> values = explain(vit, images, MaxContrast(2)).values[:, 0]
    >>> torch.allclose(values, vit(images)[:, 2] - vit(images)[:, [0, 1, 3, 4]].amax(1), atol=1e-5)
    True
    """

    allowed: ClassVar[tuple[str, ...]] = ("class",)
    label: ClassVar[str] = "max_contrast"

    def score(self, outputs: Outputs, column: Tensor, sigmoid: bool) -> Tensor:
        return _pick(outputs.values, column) - _others(outputs.values, column).amax(-1)


class ConceptSimilarity(Target):
    """Likeness of l, the vector that the head reads, to a concept's ``vector`` (D,): ⟨l, c⟩, cos(l, c) or −‖l − c‖.

    >>> explain(vit, images, ConceptSimilarity(concept_vector(vit, images), measure="cosine")).values.abs().amax() <= 1
    tensor(True)
    """

    reads_features: ClassVar[bool] = True
    label: ClassVar[str] = "concept"

    def __init__(self, vector: Tensor, measure: str = "dot") -> None:
        if measure not in ("dot", "cosine", "l2"):
            raise UsageError(f"measure is 'dot', 'cosine' or 'l2', not {measure!r}")
        if vector.ndim != 1:
            raise UsageError(f"a concept vector has the shape (D,), not {tuple(vector.shape)}")
        super().__init__()
        self.vector = vector.detach()
        self.measure = measure

    def score(self, outputs: Outputs, column: Tensor, sigmoid: bool) -> Tensor:
        features = outputs.features
        if features is None:
            raise UsageError("ConceptSimilarity needs the vector that the head reads, and this model's head is unknown")
        vector = self.vector.to(features)
        if features.shape[-1] != len(vector):
            raise UsageError(f"the concept vector has {len(vector)} entries; this head reads {features.shape[-1]}")
        if self.measure == "dot":
            return features @ vector
        if self.measure == "cosine":
            return nn.functional.cosine_similarity(features, vector.expand_as(features), dim=-1)
        distance: Tensor = (features - vector).norm(dim=-1)
        return -distance


TargetLike = int | str | Tensor | Target
"""One target: an index, a name, a LongTensor (B,) with a column per image, or a ``Target``."""
TargetsLike = None | TargetLike | Sequence[TargetLike] | Tensor


@dataclass(frozen=True)
class TargetSet:
    """T targets for each of B images. ``columns`` (B, T) holds the output's column, −1 for a concept."""

    targets: tuple[Target, ...]
    columns: Tensor
    names: tuple[str, ...]
    spec: OutputSpec

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def reads_features(self) -> bool:
        return any(target.reads_features for target in self.targets)

    def scores(self, outputs: Outputs | Tensor) -> Tensor:
        """(B, ..., T) scores, differentiable, of outputs (B, ..., C): the middle axes are copies of an image."""
        if isinstance(outputs, Tensor):
            outputs = Outputs(outputs)
        columns = self.columns.to(outputs.values.device)
        if all(type(target) is Logit for target in self.targets):  # the usual case, in one operation
            return _gather(outputs.values, columns)
        scores = [
            target.score(outputs, columns[:, t], target.uses_sigmoid(self.spec))
            for t, target in enumerate(self.targets)
        ]
        return torch.stack(scores, dim=-1)


def as_targets(targets: TargetsLike, spec: OutputSpec, default: type[Target] = Logit) -> tuple[Target, ...]:
    """The T targets that an argument of ``explain`` stands for, before they meet a batch.

    A bare index or name becomes ``default`` where the output has one, else ``Logit``.
    """
    if targets is None:
        plain: list[OutputRef] = [None] if spec.is_classifier else list(range(len(spec.kinds)))
        return tuple(_bare(output, spec, default) for output in plain)
    if isinstance(targets, Tensor) and targets.ndim > 0:
        if targets.dtype not in (torch.int64, torch.int32) or targets.ndim > 2:
            raise UsageError(
                "a tensor of targets is a LongTensor (B,) or (B, T) of classes, "
                f"not {str(targets.dtype).removeprefix('torch.')} of shape {tuple(targets.shape)}"
            )
        columns = targets.long().reshape(len(targets), -1)
        return tuple(_bare(columns[:, t], spec, default) for t in range(columns.shape[1]))
    several = targets if isinstance(targets, list | tuple) else [targets]
    if not several:
        raise UsageError("the list of targets is empty; give at least one, or None")
    return tuple(target if isinstance(target, Target) else _bare(_output(target), spec, default) for target in several)


def _output(target: object) -> OutputRef:
    """An output as it may stand in a list: an index, a name, or a LongTensor (B,)."""
    return target if isinstance(target, Tensor) and target.ndim == 1 else _plain(target)


def _plain(target: object) -> int | str:
    """An index or a name, NumPy's and torch's own integers included."""
    if isinstance(target, str):
        return target
    if hasattr(target, "__index__") and not isinstance(target, bool):
        return int(target)
    raise UsageError(f"a target is a class index, an output's name or a Target, not {type(target).__name__}")


def _bare(output: OutputRef, spec: OutputSpec, default: type[Target]) -> Target:
    if isinstance(output, Tensor) or (output is None and spec.is_classifier):
        return (default if all(kind in default.allowed for kind in spec.kinds) else Logit)(output)
    kind = spec.kinds[spec.column(output if output is not None else 0)]
    return (default if kind in default.allowed else Logit)(output)


def resolve(
    targets: TargetsLike,
    spec: OutputSpec,
    batch: int,
    values: Callable[[], Tensor],
    default: type[Target] = Logit,
) -> TargetSet:
    """Targets for a batch of images. ``values`` gives the (B, C) outputs, read only for predicted classes."""
    resolved = as_targets(targets, spec, default)
    columns, names = [], []
    for target in resolved:
        column, name = _columns(target, spec, batch, values)
        if not target.reads_features:
            target.check(spec, column)
        columns.append(column)
        names.append(target.name(name))
    return TargetSet(resolved, torch.stack(columns, dim=1), tuple(names), spec)


def _columns(target: Target, spec: OutputSpec, batch: int, values: Callable[[], Tensor]) -> tuple[Tensor, str]:
    """The column (B,) of one target for each image, and what to call it."""
    output = target.output
    if isinstance(target, ConceptSimilarity):
        return torch.full((batch,), -1), target.measure
    if output is None:
        if not spec.is_classifier and len(spec.kinds) > 1:
            raise UsageError(f"{type(target).__name__}() needs an output's name: {', '.join(spec.names or ())}")
        return values().argmax(-1).cpu(), "predicted" if spec.is_classifier else spec.name(0)
    if isinstance(output, Tensor):
        if output.ndim != 1 or len(output) != batch:
            raise UsageError(f"targets per image have the shape (B,) = ({batch},), not {tuple(output.shape)}")
        column = output.detach().cpu().long()
        for value in column.unique().tolist():
            spec.column(value)
        return column, "per image"
    column_index = spec.column(_plain(output))
    return torch.full((batch,), column_index), spec.name(column_index)


def check_batch(targets: TargetsLike, batch: int) -> None:
    """``UsageError`` where targets are given per image, but not for as many images as there are."""
    for target in targets if isinstance(targets, list | tuple) else [targets]:
        given = target.output if isinstance(target, Target) else target
        if isinstance(given, Tensor) and given.ndim > 0 and len(given) != batch:
            raise UsageError(f"targets of shape {tuple(given.shape)} are given for {batch} images; one row per image")


def select_targets(targets: TargetsLike, rows: slice) -> TargetsLike:
    """What was asked for, for some of the images: only targets that are given per image change."""
    if isinstance(targets, Tensor):
        return targets[rows] if targets.ndim > 0 else targets
    if isinstance(targets, list | tuple):
        return [_select_one(target, rows) for target in targets]
    return None if targets is None else _select_one(targets, rows)  # type: ignore[arg-type]


def _select_one(target: TargetLike, rows: slice) -> TargetLike:
    if isinstance(target, Tensor) and target.ndim == 1:
        return target[rows]
    if isinstance(target, Target) and isinstance(target.output, Tensor) and target.output.ndim == 1:
        return replace(target, output=target.output[rows])
    return target


def _by_maps(target: Target, targets: TargetSet) -> bool:
    return isinstance(target, LogOdds) and target.contrast == "maps" and not target.uses_sigmoid(targets.spec)


def without_map_contrasts(targets: TargetSet) -> TargetSet:
    """The targets to explain instead: all others as they are, then every logit if any target contrasts maps
    (``LogOdds(contrast="maps")``)."""
    plain = [t for t, target in enumerate(targets.targets) if not _by_maps(target, targets)]
    if len(plain) == len(targets):
        return targets
    classes = torch.arange(len(targets.spec.kinds)).expand(len(targets.columns), -1)
    return replace(
        targets,
        targets=(*(targets.targets[t] for t in plain), *(Logit(c) for c in range(len(targets.spec.kinds)))),
        columns=torch.cat([targets.columns[:, plain], classes], dim=1),
        names=(*(targets.names[t] for t in plain), *(targets.spec.name(c) for c in range(len(targets.spec.kinds)))),
    )


def combine_maps(targets: TargetSet, relevance: Tensor, outputs: Tensor) -> Tensor:
    """Relevance (B, T, ·, ·) of the asked targets, from that of ``without_map_contrasts(targets)``."""
    if not any(_by_maps(target, targets) for target in targets.targets):
        return relevance
    count = len(targets.spec.kinds)
    plain, maps = iter(relevance[:, :-count].unbind(1)), relevance[:, -count:]
    joined = []
    for t, target in enumerate(targets.targets):
        if not _by_maps(target, targets):
            joined.append(next(plain))
            continue
        is_target = nn.functional.one_hot(targets.columns[:, t].to(outputs.device), count).bool()
        weights = is_target.to(maps) - outputs.masked_fill(is_target, -torch.inf).softmax(-1).to(maps)
        joined.append(torch.einsum("bc,bchw->bhw", weights, maps))
    return torch.stack(joined, dim=1)
