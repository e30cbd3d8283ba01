"""What a benchmark measures, validated, and fit to be written beside its results."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.forward import Precision
from lidc_xai.evaluation.metrics._box_sensitivity import SIDES_AT_224
from lidc_xai.evaluation.metrics._deletion_insertion import CELL_AT_224
from lidc_xai.evaluation.metrics._fidelity import POINTS, check_up_to
from lidc_xai.evaluation.replacement import SIGMA_AT_224, ReplacementName
from lidc_xai.explain.abilities import list_methods, refusals
from lidc_xai.explain.registry import find_method, method_options

DISC = "centred_disc"
RANDOM_WEIGHTS = "@random_weights"
READERS = "readers"
MODEL = "model"
"""Row of what is measured on the model itself, not on a map."""
TARGET, WRONG = "target", "wrong"
"""Outputs of a classifier in the results: each image's right and wrong class."""

ADDED_LATER = (
    "up_to", "inpaint", "attack_epsilon", "attack_steps", "map_attack_steps", "map_attack_draws", "map_attack_keep",
)  # fmt: skip
"""Options that a benchmark of an earlier version lacks."""

MetricName = Literal[
    "fidelity", "box", "discrimination", "saco", "compactness", "adcc", "deletion", "sensitivity_n", "localisation",
    "radial", "causes", "noise", "runs", "randomisation", "attack", "map_attack", "scan",
]  # fmt: skip
METRICS: tuple[MetricName, ...] = get_args(MetricName)
_USUAL: tuple[MetricName, ...] = (
    "fidelity", "box", "discrimination", "saco", "compactness", "adcc", "localisation", "radial", "causes",
)  # fmt: skip


class BenchmarkOptions(BaseModel):
    """Methods × metrics × outputs, and how each is measured.

    >>> BenchmarkOptions(methods=("cdam",), metrics=("fidelity",), points=5).points
    5
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    methods: tuple[str, ...] = Field(default=(), description="Methods; empty: all that the model can do.")
    metrics: tuple[MetricName, ...] = Field(default=_USUAL, description="Metrics to measure.")
    outputs: tuple[str, ...] = Field(default=(), description="Outputs of a named model; empty: all.")
    method_options: dict[str, dict[str, Any]] = Field(
        default={},
        description="Options of single methods, and variants of methods as 'label: {method: name, option: value}'.",
    )
    replacements: tuple[ReplacementName, ...] = Field(
        default=("blur",), description="What removed pixels become: blur, lung, mean, zero."
    )
    sigma: float = Field(default=SIGMA_AT_224, gt=0, description="Blur in px at 224.")
    sigma_mm: float | None = Field(default=None, gt=0, description="Blur in mm, where the cases have a spacing.")
    points: int = Field(default=POINTS, ge=2, description="Points of the MIF and LIF curves.")
    up_to: float = Field(default=100.0, gt=0, le=100, description="Areas of the curves over 0 to so many percent.")
    inpaint: bool = Field(default=False, description="Fidelity also with removed pixels filled from those left.")
    boxes: int = Field(default=100, ge=3, description="Boxes per size.")
    sizes: tuple[int, ...] = Field(default=SIDES_AT_224, description="Sides of the boxes in px at 224.")
    sets: int = Field(default=100, ge=3, description="Random pixel sets per share (Sensitivity-n).")
    cell: int = Field(default=CELL_AT_224, ge=1, description="Side of a deleted cell in px at 224.")
    signed: Literal["relu", "minmax"] = Field(default="relu", description="ADCC: map of relu(S), or of S.")
    disc: bool = Field(default=True, description="Add a centred disc as a method that has not seen the image.")
    random_weights: bool = Field(
        default=True, description="Localisation and causes also for the model with random weights."
    )
    noise_sigma: float = Field(
        default=0.05, gt=0, description="Input noise in units of the image's standard deviation."
    )
    attack_epsilon: float = Field(default=0.01, gt=0, description="Attacks: largest step in normalised units.")
    attack_steps: int = Field(default=10, ge=1, description="Attack on the output: steps of PGD.")
    map_attack_steps: int = Field(default=5, ge=1, description="Attack on the map: steps.")
    map_attack_draws: int = Field(default=4, ge=1, description="Attack on the map: pairs of maps for a slope.")
    map_attack_keep: float = Field(default=0.1, ge=0, description="Attack on the map: how far the score may move.")
    runs: int = Field(default=3, ge=2, description="Runs of a stochastic method that are compared.")
    curves: bool = Field(default=True, description="Keep the curves of every sample.")
    seed: int = Field(default=0, ge=0, description="Seed of ties, boxes, sets, noise and random weights.")
    max_batch: int = Field(default=64, ge=1, description="Images per forward pass.")
    explain_batch: int = Field(default=16, ge=1, description="Images that are explained together.")
    precision: Precision = Field(default="float32", description="Precision of the perturbed passes.")

    @field_validator("metrics", "methods", "outputs", "replacements")
    @classmethod
    def _no_twins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"names are given twice: {', '.join(value)}")
        return value

    @model_validator(mode="after")
    def _on_the_curve(self) -> BenchmarkOptions:
        try:
            check_up_to(self.up_to, self.points)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return self

    def variants(self, model: nn.Module) -> dict[str, tuple[str, dict[str, Any]]]:
        """Label → (method, options) for ``model``; ``UsageError`` for a method that it cannot do, with the reason."""
        chosen: dict[str, tuple[str, dict[str, Any]]] = {}
        known = set(list_methods(model))
        for label in self.methods or tuple(list_methods(model)):
            options = dict(self.method_options.get(label, {}))
            chosen[label] = (options.pop("method", label), options)
        for label, given in self.method_options.items():
            if "method" in given:
                chosen.setdefault(label, (given["method"], {k: v for k, v in given.items() if k != "method"}))
            elif label not in chosen:
                raise UsageError(
                    f"method_options of {label!r}: it is not among the methods; give 'method' for a variant"
                )
        for label, (method, options) in chosen.items():
            try:
                method_options([find_method(method)], options)
            except TypeError as error:
                raise UsageError(f"method_options of {label!r}: {error}") from None
            if method not in known:
                raise UsageError(f"{method} cannot explain this model: {refusals(model)[method]}")
        return chosen

    def fingerprint(self, model: nn.Module) -> str:
        """Hash of these options (what only changes speed left out) and of the model's weights."""
        # A benchmark begun before these fields were there goes on.
        later = {name for name in ADDED_LATER if getattr(self, name) == type(self).model_fields[name].default}
        plain = self.model_dump(mode="json", exclude={"max_batch", "explain_batch", *later})
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
        for name, value in model.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]
