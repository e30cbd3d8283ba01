"""Heads: from the vector that the backbone gives to one number per output.

linear: y = W x + b.  mlp: y = W2 relu(W1 x + b1) + b2.  bottleneck: biomarkers c = W x + b, malignancy y = v·c + v0;
then every relevance map that is linear in the target composes: S(malignancy) = Σ_b v_b S(b).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError

HEADS = ("linear", "mlp", "bottleneck")


class BottleneckHead(nn.Module):
    """Malignancy from the predicted (standardised) biomarkers alone, linearly."""

    def __init__(self, width: int, outputs: Sequence[str], dropout: float = 0.0) -> None:
        super().__init__()
        self.output_names = tuple(outputs)
        self.concept_names = tuple(name for name in outputs if name != "malignancy")
        self.dropout = nn.Dropout(dropout)
        self.concepts = nn.Linear(width, len(self.concept_names))
        self.verdict = nn.Linear(len(self.concept_names), 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, outputs) in the order of the outputs."""
        concepts = self.concepts(self.dropout(features))
        columns = dict(zip(self.concept_names, concepts.unbind(-1), strict=True))
        columns["malignancy"] = self.verdict(concepts)[..., 0]
        return torch.stack([columns[name] for name in self.output_names], dim=-1)

    def shares(self, outputs: Tensor) -> dict[str, Tensor]:
        """What each biomarker adds to the malignancy logit, v_b · c_b, (B,) each; with ``bias`` they sum to the
        logit.
        """
        weights = self.verdict.weight[0]
        shares = {
            name: outputs[..., self.output_names.index(name)] * weight
            for name, weight in zip(self.concept_names, weights, strict=True)
        }
        shares["bias"] = self.verdict.bias[0].expand(outputs.shape[:-1])
        return shares


def build_head(kind: str, width: int, outputs: Sequence[str], hidden: int | None, dropout: float) -> nn.Module:
    """A head of ``kind``; ``hidden`` is the width of the middle layer of an mlp (None: the backbone's width)."""
    if kind == "linear":
        linear = nn.Linear(width, len(outputs))
        return nn.Sequential(nn.Dropout(dropout), linear) if dropout else linear
    if kind == "mlp":
        middle = hidden or width
        return nn.Sequential(
            nn.Linear(width, middle), nn.ReLU(), nn.Dropout(dropout), nn.Linear(middle, len(outputs))
        )  # fmt: skip
    if kind == "bottleneck":
        if "malignancy" not in outputs or len(outputs) < 2:
            raise UsageError(
                f"head 'bottleneck' needs malignancy and at least one biomarker among the outputs, got {list(outputs)}"
            )
        return BottleneckHead(width, outputs, dropout)
    raise UsageError(f"unknown head {kind!r}; known: {', '.join(HEADS)}")
