"""A batch of cases while it is measured: images, targets, every method's maps, and the passes that metrics share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation.benchmark.options import DISC, TARGET, WRONG, BenchmarkOptions
from lidc_xai.evaluation.cases import Case
from lidc_xai.evaluation.forward import Forward, Scored, scored
from lidc_xai.evaluation.geometry import centred_disc
from lidc_xai.evaluation.map_functions import MapFunction, run_map_function
from lidc_xai.evaluation.maps import resampled, spanning
from lidc_xai.evaluation.metrics._box_sensitivity import Boxes, box_outputs, random_boxes
from lidc_xai.evaluation.metrics._fidelity import replaced_outputs
from lidc_xai.evaluation.replacement import Replacement, ReplacementName
from lidc_xai.evaluation.results import Result
from lidc_xai.evaluation.statistics import Floats
from lidc_xai.explain.api import explain
from lidc_xai.explain.registry import find_method
from lidc_xai.explain.targets import Outputs, TargetsLike, select_targets

Variants = Mapping[str, tuple[str | MapFunction, dict[str, Any]]]
"""Label → a method of ``explain`` or a function of the caller's own, and its options."""
COLUMNS = ("case", "plane", "cluster", "group", "method", "output", "metric", "x", "value", "note")
DISC_SHARE = 0.25


@dataclass
class Rows:
    """Results of a batch, one entry per (metric, method, output): values (B,) or curves (B,P) at x."""

    entries: list[tuple[str, str, str, Floats | None, Floats, tuple[str, ...]]] = field(default_factory=list)

    def add(self, metric: str, method: str, output: str, values: Floats, reasons: Iterable[str]) -> None:
        """One value per image; ``reasons`` say why one is undefined or a limiting case."""
        self.entries.append((metric, method, output, None, np.asarray(values, dtype=np.float64), tuple(reasons)))

    def add_result(self, family: str, method: str, output: str, result: Result) -> None:
        """All figures of a metric's result."""
        for name in result.figures:
            self.add(f"{family}/{name}", method, output, getattr(result, name), result.notes(name))

    def add_curve(self, metric: str, method: str, output: str, x: Floats, values: Floats) -> None:
        """One curve (B,P) per image at positions x (P,)."""
        self.entries.append((metric, method, output, np.asarray(x, dtype=np.float64), values, ("",) * len(values)))

    def of_image(self, b: int) -> pd.DataFrame:
        """The rows of one image: metric, method, output, x, value, note."""
        parts: list[dict[str, Any]] = []
        for metric, method, output, x, values, reasons in self.entries:
            at_image = np.atleast_1d(values[b])
            at = np.full(len(at_image), np.nan) if x is None else x
            note = reasons[b]
            parts.append(
                {"metric": metric, "method": method, "output": output, "x": at, "value": at_image, "note": note}
            )
        if not parts:
            return pd.DataFrame(columns=["metric", "method", "output", "x", "value", "note"])
        lengths = [len(part["value"]) for part in parts]
        frame = {
            key: np.repeat([part[key] for part in parts], lengths) for key in ("metric", "method", "output", "note")
        }
        frame |= {key: np.concatenate([part[key] for part in parts]) for key in ("x", "value")}
        return pd.DataFrame(frame)


class Batch:
    """Cases of one image size, measured together."""

    def __init__(
        self,
        model: nn.Module,
        cases: list[Case],
        options: BenchmarkOptions,
        variants: Variants,
        model_masked: nn.Module | None = None,
    ) -> None:
        self.masked = None if model_masked is None else Forward(model_masked, options.max_batch, options.precision)
        self.model, self.cases, self.options, self.variants = model, cases, options, variants
        self.forward = Forward(model, options.max_batch, options.precision)
        images = self.forward.place(torch.cat([case.images for case in cases]))
        self.named = getattr(model, "output_names", None) is not None
        self.wanted = self._targets(images)
        self.asked: Scored = scored(self.forward, images, self.wanted)

    @property
    def images(self) -> Tensor:
        return self.asked.images

    @property
    def size(self) -> tuple[int, int]:
        return self.asked.size

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Name of each of the T targets: the model's outputs, or "target" and "wrong" of a classifier."""
        return self.asked.targets.names if self.named else (TARGET, WRONG)[: len(self.asked.targets)]

    def _targets(self, images: Tensor) -> TargetsLike:
        """What to explain: named outputs, or per image the right and the wrong class."""
        if self.named:
            return list(self.options.outputs) or None
        if self.options.outputs:
            raise UsageError("outputs are chosen by name on a model with named outputs; give classes as the targets")
        values = self.forward.outputs(images).values.cpu()
        if values.shape[1] < 2:
            return None
        top = values.topk(2).indices
        rows = []
        for case, most_probable in zip(self.cases, top.split([len(case.images) for case in self.cases]), strict=True):
            if case.targets is None:
                rows.append(most_probable)
                continue
            given = case.targets.long().reshape(len(most_probable), -1)
            second = torch.where(most_probable[:, 0] == given[:, 0], most_probable[:, 1], most_probable[:, 0])[:, None]
            rows.append(given[:, :2] if given.shape[1] > 1 else torch.cat([given, second], dim=1))
        return torch.cat(rows)

    # maps ----------------------------------------------------------------------------------------------------------

    @cached_property
    def maps(self) -> dict[str, Tensor]:
        """Label → raw maps (B,T,h,w), float64 on the CPU's or the model's device."""
        maps = self.explain_all(self.model, self.images)
        if self.options.disc:
            maps[DISC] = self._discs()
        return maps

    @cached_property
    def pixels(self) -> dict[str, Tensor]:
        """Label → maps on the pixel grid (B,T,H,W)."""
        return {
            label: maps if tuple(maps.shape[-2:]) == self.size else resampled(maps, self.size)
            for label, maps in self.maps.items()
        }

    def explain_all(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        only: int | None = None,
        labels: Iterable[str] | None = None,
        **seeds: int,
    ) -> dict[str, Tensor]:
        """Every method's maps (B,T,h,w) of ``images`` by ``model``; plain methods share one pass of the trunk.

        ``only``: one of the T targets; ``labels``: some of the methods.
        """
        chunk = self.options.explain_batch
        variants = {label: self.variants[label] for label in (self.variants if labels is None else labels)}
        parts: dict[str, list[Tensor]] = {label: [] for label in variants}
        plain = [label for label, (method, given) in variants.items() if label == method and not given]
        for start in range(0, len(images), chunk):
            some = images[start : start + chunk]
            columns = self.asked.targets.columns[start : start + chunk]
            asked: TargetsLike = select_targets(self.wanted, slice(start, start + chunk))
            if only is not None:
                asked = columns = columns[:, only : only + 1]
            if plain:
                usable = {k: v for k, v in seeds.items() if any(k in find_method(label).options for label in plain)}
                for label, explanation in explain(model, some, asked, plain, **usable).items():
                    parts[label].append(spanning(explanation).double())
            for label, (method, given) in variants.items():
                if not isinstance(method, str):
                    parts[label].append(run_map_function(label, method, model, some, columns))
                elif label not in plain:
                    seeded = {k: v for k, v in seeds.items() if k in find_method(method).options}
                    explanation = explain(model, some, asked, method, **{**given, **seeded})
                    parts[label].append(spanning(explanation).double())
        return {label: torch.cat(several) for label, several in parts.items()}

    def _discs(self) -> Tensor:
        """(B,T,H,W): a disc of the mask's own area in the middle, of a quarter of the image where there is no mask."""
        pixels = self.size[0] * self.size[1]
        discs = []
        for case in self.cases:
            for v in range(len(case.images)):
                mask = None if case.masks is None else case.masks[v]
                share = DISC_SHARE if mask is None or not mask.any() else float(mask.double().mean())
                discs.append(centred_disc(self.size, max(1, round(share * pixels))))
        stacked = torch.from_numpy(np.stack(discs)).to(self.images.device)
        return stacked[:, None].expand(-1, len(self.asked.targets), -1, -1).clone()

    # shared passes -------------------------------------------------------------------------------------------------

    def removed(self, name: ReplacementName) -> Tensor:
        """(B,C,H,W): what removed pixels become."""
        if name not in self._removed:
            parts = []
            for case, images in self.by_case(self.images):
                parts.append(
                    Replacement(
                        name,
                        sigma=self.options.sigma,
                        sigma_mm=self.options.sigma_mm,
                        spacing_mm=self._pixel_mm(case),
                        masks=case.masks,
                        parenchyma=case.parenchyma,
                        seed=self.options.seed,
                    ).of(images)
                )
            self._removed[name] = torch.cat(parts)
        return self._removed[name]

    @cached_property
    def _removed(self) -> dict[str, Tensor]:
        return {}

    def ends(self, name: ReplacementName) -> Outputs:
        """(B,2,C): outputs of the images and of the images with everything replaced."""
        return replaced_outputs(self.forward, self.asked.outputs, self.removed(name))

    @cached_property
    def boxes(self) -> Boxes:
        return random_boxes(self.size, self.options.sizes, self.options.boxes, self.options.seed)

    def box_scores(self, name: ReplacementName) -> Floats:
        """(B,S·n,T): scores with one box replaced, shared by all methods."""
        scores = self.asked.read(box_outputs(self.forward, self.images, self.removed(name), self.boxes))
        return np.asarray(scores.cpu().numpy())

    @cached_property
    def plain_scores(self) -> Floats:
        """(B,T)."""
        return np.asarray(self.asked.scores.cpu().numpy())

    # masks ---------------------------------------------------------------------------------------------------------

    def by_case(self, values: Tensor) -> Iterator[tuple[Case, Tensor]]:
        """Each case with its own rows of (B, ...)."""
        counts = [len(case.images) for case in self.cases]
        return zip(self.cases, values.split(counts), strict=True)

    def _pixel_mm(self, case: Case) -> tuple[float, float] | None:
        if case.masks is None:
            if self.options.sigma_mm is not None:
                raise DataError(f"case {case.case_id!r}: sigma_mm needs masks with a spacing")
            return None
        rows, columns = case.spacing_mm if isinstance(case.spacing_mm, tuple) else (case.spacing_mm,) * 2
        return rows * case.masks.shape[-2] / self.size[0], columns * case.masks.shape[-1] / self.size[1]
