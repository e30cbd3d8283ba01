"""The hash that names a network: of names and values, of nothing else."""

import pytest
import torch
from torch import nn

from lidc_xai.errors import UsageError
from lidc_xai.models.digest import base_digest, check_different, tensors_digest


def test_names_and_values_count_and_their_order_does_not() -> None:
    x, y = torch.arange(4.0), torch.ones(4)
    digest = tensors_digest({"a": x, "b": y})
    assert tensors_digest({"b": y, "a": x}) == digest
    assert tensors_digest({"a": x[::2].repeat_interleave(1), "b": y}) != digest
    assert tensors_digest({"a": x, "c": y}) != digest
    assert tensors_digest({"a": x.view(2, 2).T.contiguous().T.flatten(), "b": y}) == digest


def test_positions_do_not_name_a_backbone() -> None:
    """They are interpolated to the size that is read."""
    backbone = nn.Linear(2, 2)
    digest = base_digest(backbone)
    backbone.pos_embed = nn.Parameter(torch.ones(3))
    assert base_digest(backbone) == digest


def test_a_copy_is_named() -> None:
    check_different(["x", "y"])
    with pytest.raises(UsageError, match=r"model 1 and model 3 have the same weights \(SHA-256 abc…\)"):
        check_different(["abc", "y", "abc"])
