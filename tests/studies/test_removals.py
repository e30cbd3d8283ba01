"""Rank correlations of removals on areas whose orders are known, and the tuned copy of the photographs' network."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from removals import Removals, correlations, tuned_copy

from lidc_xai.errors import DataError

ORDERS = {
    "fidelity": {"a": 3.0, "b": 2.0, "c": 1.0, "random": 9.0},
    "fidelity_tuned": {"a": 30.0, "b": 20.0, "c": 10.0, "random": 0.0},
    "fidelity_lung": {"a": -1.0, "b": 0.0, "c": 1.0, "random": 5.0},
}


def rows_of(cases: int) -> pd.DataFrame:
    """The same order in every case, 0.1 more in each next; a case the more that has no lung."""
    rows = [
        {"cluster": f"p{k}", "case": f"n{k}", "method": method, "metric": f"{family}/area", "x": np.nan}
        | {"value": value + k / 10}
        for k, (family, values) in product(range(cases), ORDERS.items())
        for method, value in values.items()
    ]
    lone = [row | {"case": "lone", "cluster": "lone"} for row in rows if row["metric"] == "fidelity/area"][:4]
    return pd.DataFrame([*rows, *lone, rows[0] | {"metric": "fidelity/area_mif"}, rows[0] | {"x": 5.0}])


def test_orders_that_agree_have_rho_1_and_reversed_ones_minus_1() -> None:
    orders, table = correlations(rows_of(3), 100, 0)
    rho = table.set_index(["a", "b"])
    assert rho.loc[("fidelity", "fidelity_tuned"), ["rho", "low", "high"]].tolist() == [1, 1, 1]
    assert rho.loc[("fidelity", "fidelity_lung"), "rho"] == -1
    assert set(table["methods"]) == {3}
    assert set(table["cases"]) == {3}
    assert orders.loc["a", "fidelity"] == pytest.approx(3.1)


def test_without_a_case_of_all_removals_there_is_nothing_to_correlate() -> None:
    rows = rows_of(1)
    with pytest.raises(DataError, match="no case has fidelity of every method"):
        correlations(rows[rows["case"] == "lone"].assign(value=np.nan), 100, 0)


def test_the_tuned_copy_is_another_network_and_the_first_stays_as_it_was() -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_classes=2)
    images, truth = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
    before = model.head.weight.clone()
    copied, rise = tuned_copy(Removals(epochs=1, rate=1e-3), model, (images, truth), (images, truth))
    assert torch.equal(model.head.weight, before)
    assert not torch.equal(copied.head.weight, before)
    assert np.isfinite(rise)
    assert not copied.training
