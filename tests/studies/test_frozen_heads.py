"""Heads on a frozen backbone: the linear layer gives what the fits in standardised features give."""

import numpy as np
import pandas as pd
import torch
from frozen_heads import set_head
from maps_across_seeds import draw_agreement, unseen_nodules
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from lidc_xai.models import build_model


def test_the_head_predicts_what_was_fitted() -> None:
    rng = np.random.default_rng(0)
    model = build_model("vit_nodule_p8", ("malignancy", "margin"), size=16, seed=0)
    features = rng.normal(3, 2, (150, 96))
    targets = np.stack([features[:, 0] > 3, features[:, 1] * 0.3 + 3], axis=1)
    targets[:10] = np.nan
    set_head(model, features, targets)
    rated = slice(10, None)
    x = StandardScaler().fit(features).transform(features)
    y = targets[rated, 1]
    ridge = Ridge(alpha=140.0).fit(x[rated], (y - y.mean()) / y.std())
    chance = LogisticRegression(C=0.01, max_iter=1000).fit(x[rated], targets[rated, 0] > 0.5)
    with torch.no_grad():
        outputs = model.head(torch.from_numpy(features).float()).numpy()
    assert np.allclose(outputs[:, 1], ridge.predict(x), atol=1e-4)
    assert np.allclose(outputs[:, 0], chance.decision_function(x), atol=1e-4)
    assert model.target_scaling["margin"] == (y.mean(), y.std())


def test_only_patients_that_every_run_left_out(tmp_path) -> None:
    from types import SimpleNamespace

    table = pd.DataFrame(
        {"nodule_id": [f"n{k}" for k in range(6)], "patient_id": ["P0", "P0", "P1", "P2", "P3", "P4"],
         "n_readers": [4, 4, 3, 4, 2, 3]}
    )  # fmt: skip
    store = SimpleNamespace(manifest=table, path=tmp_path)
    first, second, fold = (build_model("vit_nodule_p8", ("malignancy",), size=16, seed=k) for k in range(3))
    first.training_info, second.training_info = {"train_patients": ["P1"]}, {"train_patients": ["P4"]}
    fold.training_info = {"validation_patients": ["P2"]}
    chosen = unseen_nodules(store, [[first], [second, fold]], 10, 0)
    assert set(chosen) in ({"n0", "n3", "n5"}, {"n1", "n3", "n5"})  # P1 is known, P3 has two readers


def test_a_line_for_every_method_with_an_interval() -> None:
    table = pd.DataFrame(
        [
            {"lever": "one slice", "method": method, "sigma": None, "maps": "models", "output": output, "k": k,
             "agreement": 0.2 * k, "low": 0.1 * k, "high": 0.3 * k}
            for method in ("cdam", "attn_lrp") for output in ("all", "malignancy", "margin") for k in (1, 2)
        ]
    )  # fmt: skip
    text = draw_agreement(table)
    assert [text.count(f">{words}<") for words in ("cdam", "attn_lrp", "all outputs", "malignancy", "margin")] == [
        1, 1, 1, 1, 0,
    ]  # fmt: skip
    assert text == draw_agreement(table)
