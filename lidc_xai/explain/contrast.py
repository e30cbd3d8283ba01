"""The weighted contrast by maps: φ_t − Σ_{s≠t} α_s φ_s over the maps of all logits.

For methods linear in the target's gradient it equals the map of ``LogOdds``; for clamped or rectified ones it differs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lidc_xai.explain.targets import Logit, LogOdds, Target, TargetSet


def _by_maps(target: Target, targets: TargetSet) -> bool:
    return isinstance(target, LogOdds) and target.contrast == "maps" and not target.uses_sigmoid(targets.spec)


def without_map_contrasts(targets: TargetSet) -> TargetSet:
    """The targets to explain instead: all others as they are, then every logit if any target contrasts maps."""
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
        is_target = torch.nn.functional.one_hot(targets.columns[:, t].to(outputs.device), count).bool()
        weights = is_target.to(maps) - outputs.masked_fill(is_target, -torch.inf).softmax(-1).to(maps)
        joined.append(torch.einsum("bc,bchw->bhw", weights, maps))
    return torch.stack(joined, dim=1)
