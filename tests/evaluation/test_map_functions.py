"""Somebody else's method beside ours: same rows, same numbers, and one line where it fails."""

from pathlib import Path

import captum.attr as captum
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from lidc_xai.errors import UsageError
from lidc_xai.evaluation import BenchmarkOptions, Case, box_sensitivity, fidelity, run_benchmark, write_benchmark
from lidc_xai.evaluation.benchmark.runner import read_parts
from lidc_xai.explain import explain

FAST = {"boxes": 8, "sets": 8, "points": 5, "cell": 56}
EVERYTHING = ("fidelity", "box", "discrimination", "compactness", "adcc", "deletion", "sensitivity_n", "noise", "runs",
              "randomisation", "localisation")  # fmt: skip


def captum_gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return captum.Saliency(model).attribute(images, target=targets, abs=False).sum(1)


def captum_input_x_gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return captum.InputXGradient(model).attribute(images, target=targets).sum(1)


def centre(model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray:
    """A map on a grid of its own, as a NumPy array."""
    return np.tile(np.outer(np.hanning(8), np.hanning(8)), (len(images), 1, 1))


def cases(images: Tensor) -> list[Case]:
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[:, 4:11, 5:12] = True
    return [Case(images[k : k + 1], masks=mask, case_id=f"n{k}", spacing_mm=2.0) for k in range(len(images))]


def column(rows: pd.DataFrame, metric: str, method: str) -> pd.Series:
    own = rows[(rows.metric == metric) & (rows.method == method)]
    assert len(own)
    return own.assign(x=own["x"].fillna(-1)).groupby(["case", "output", "x"], observed=True)["value"].first()


def test_captums_maps_score_what_ours_score(named: nn.Module, images: Tensor, tmp_path: Path) -> None:
    options = BenchmarkOptions(methods=("saliency", "input_x_gradient"), metrics=EVERYTHING, **FAST)
    theirs = {"captum gradient": captum_gradient, "captum input × gradient": captum_input_x_gradient}
    run = run_benchmark(named, cases(images), tmp_path, options, map_functions=theirs)
    assert (run.measured, run.skipped) == (4, [])
    rows = run.table()
    pairs = {"saliency": "captum gradient", "input_x_gradient": "captum input × gradient"}
    for ours, other in pairs.items():
        for suffix in ("", "@random_weights"):
            metrics = set(rows[rows.method == ours + suffix].metric)
            assert metrics == set(rows[rows.method == other + suffix].metric)
            for metric in metrics:
                a, b = column(rows, metric, ours + suffix), column(rows, metric, other + suffix)
                pd.testing.assert_series_equal(a, b, atol=1e-7, check_names=False)
    write_benchmark(tmp_path, resamples=20)
    text = (tmp_path / "benchmark.md").read_text(encoding="utf-8")
    for title in ("Compactness", "ADCC", "Localisation against the consensus", "Sanity"):
        table = text.split(f"## {title}", maxsplit=1)[1].split("\n## ")[0]
        assert "| captum gradient |" in table.replace("**", "")
        assert "| saliency |" in table.replace("**", "")


def test_a_grid_of_its_own_and_numpy(vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    labels = torch.tensor([0, 1, 2, 3])
    seen = []

    def watched(model: nn.Module, some: Tensor, targets: Tensor) -> np.ndarray:
        seen.append((model.training, torch.is_grad_enabled(), targets.dtype, len(targets) == len(some)))
        return centre(model, some, targets)

    options = BenchmarkOptions(methods=("cdam",), metrics=("fidelity", "box", "compactness"), disc=False, **FAST)
    vit.train()
    rows = run_benchmark(vit, [(images, labels, None)], tmp_path, options, map_functions={"centre": watched}).table()
    assert vit.training
    vit.eval()
    assert set(seen) == {(False, True, torch.int64, True)}
    maps = torch.from_numpy(centre(vit, images, labels))
    wanted = fidelity(vit, images, maps, labels, points=5).area
    np.testing.assert_allclose(column(rows, "fidelity/area", "centre"), wanted, atol=1e-9)
    boxes = box_sensitivity(vit, images, maps, labels, boxes=8).area
    np.testing.assert_allclose(column(rows, "box/area", "centre"), boxes, atol=1e-6)
    ours = fidelity(vit, images, explain(vit, images, labels).relevance[:, 0], labels, points=5).area
    np.testing.assert_allclose(column(rows, "fidelity/area", "cdam"), ours, atol=1e-9)


def test_quantus_maps_take_part(vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    quantus = pytest.importorskip("quantus")

    def quantus_gradient(model: nn.Module, some: Tensor, targets: Tensor) -> np.ndarray:
        x, y = some.float().numpy(), targets.numpy()
        found = quantus.explain(
            model.float(), x, y, method="InputXGradient", abs=False, normalise=False, reduce_axes=()
        )
        model.double()
        return found.sum(1)

    options = BenchmarkOptions(methods=("input_x_gradient",), metrics=("fidelity", "compactness"), **FAST)
    functions = {"Quantus": quantus_gradient}
    rows = run_benchmark(vit, cases(images), tmp_path, options, map_functions=functions).table()
    ours, theirs = (column(rows, "fidelity/area", name) for name in ("input_x_gradient", "Quantus"))
    np.testing.assert_allclose(theirs, ours, atol=0.02)  # float32, and near-ties change places


def test_what_fails_is_one_line_of_the_case(named: nn.Module, images: Tensor, tmp_path: Path) -> None:
    def channels(model: nn.Module, some: Tensor, targets: Tensor) -> Tensor:
        return some

    def dies_on_one(model: nn.Module, some: Tensor, targets: Tensor) -> Tensor:
        if bool((some == images[2]).flatten(1).all(1).any()):
            raise ValueError("no such layer\nand more")
        return some.mean(1)

    options = BenchmarkOptions(methods=("cdam",), metrics=("compactness",))
    run = run_benchmark(named, cases(images), tmp_path / "a", options, map_functions={"mine": dies_on_one})
    assert run.measured == 3
    assert [(row.nodule_id, row.reason) for row in run.skipped] == [
        ("n2", "method 'mine' failed: ValueError: no such layer")
    ]
    run = run_benchmark(named, cases(images)[:1], tmp_path / "b", options, map_functions={"mine": channels})
    assert run.skipped[0].reason == (
        "method 'mine' gave (1, 3, 32, 32), not one map (h, w) for each of 1 images; sum over the channels first"
    )


def test_names_of_other_rows_and_changed_functions_are_refused(
    named: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    options = BenchmarkOptions(methods=("saliency",), metrics=("compactness",))
    for name in ("cdam", "saliency", "centred_disc", "readers", "model", "a@b", ""):
        with pytest.raises(UsageError, match="that name is taken"):
            run_benchmark(named, cases(images), tmp_path, options, map_functions={name: captum_gradient})
    with pytest.raises(UsageError, match="is a function"):
        run_benchmark(named, cases(images), tmp_path, options, map_functions={"mine": "gradient"})
    run_benchmark(named, cases(images)[:1], tmp_path, options, map_functions={"mine": captum_gradient})
    assert (
        run_benchmark(
            named, cases(images)[:1], tmp_path, options, map_functions={"mine": captum_gradient}
        ).already_there
        == 1
    )
    for functions in ({"mine": captum_input_x_gradient}, {"other": captum_gradient}, None):
        with pytest.raises(UsageError, match="another model or with other options"):
            run_benchmark(named, cases(images)[:1], tmp_path, options, map_functions=functions)
    assert set(read_parts(tmp_path)["method"]) == {"saliency", "mine", "centred_disc"}
