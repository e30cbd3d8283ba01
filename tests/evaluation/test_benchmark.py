"""The runner: equal to the single functions, resumable after a kill, and a report that hides nothing."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from studies.published import published
from torch import Tensor, nn

from lidc_xai.errors import DataError, UsageError
from lidc_xai.evaluation import (
    BenchmarkOptions,
    BenchmarkRun,
    Case,
    LazyCase,
    box_sensitivity,
    class_discrimination,
    compactness,
    deletion_insertion,
    fidelity,
    localisation,
    run_benchmark,
    sensitivity_n,
    write_benchmark,
)
from lidc_xai.evaluation.benchmark.options import METRICS
from lidc_xai.evaluation.benchmark.runner import _together, part_path, read_parts
from lidc_xai.explain import explain

FAST = {"boxes": 8, "sets": 8, "points": 5, "cell": 56}


def disc(size: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return (y - size / 2) ** 2 + (x - size / 2 + 1) ** 2 < (size / 4) ** 2


@pytest.fixture(scope="module")
def nodules() -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    cases = []
    for k in range(4):
        images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
        mask = disc(16).expand(2, -1, -1)
        cases.append(
            Case(
                images,
                masks=mask,
                case_id=f"LIDC-IDRI-{k:04d}-s1-n0",
                cluster=f"p{k // 2}",
                group="small" if k % 2 else "large",
                spacing_mm=2.0,
                planes=("axial", "coronal"),
                readers=mask[:, None].expand(-1, 3, -1, -1),
                causes={"spiculation": mask} if k else {},
                without={"spiculation": images * 0.9} if k else {},
            )
        )
    return cases


def value(rows: pd.DataFrame, metric: str, method: str, output: str, case: str, plane: str) -> float:
    own = rows[(rows.metric == metric) & (rows.method == method) & (rows.output == output) & rows.x.isna()]
    found = own[(own.case == case) & (own.plane == plane)]["value"]
    assert len(found) == 1
    return float(found.iloc[0])


def test_rows_equal_the_single_functions(named: nn.Module, nodules: list[Case], tmp_path: Path) -> None:
    options = BenchmarkOptions(
        methods=("cdam", "saliency", "attention"),
        metrics=("fidelity", "box", "discrimination", "compactness", "deletion", "sensitivity_n", "localisation"),
        explain_batch=5,
        max_batch=13,
        **FAST,
    )
    run = run_benchmark(named, nodules, tmp_path, options)
    assert (run.measured, run.already_there, run.skipped) == (4, 0, [])
    rows = run.table()
    case = nodules[2]
    maps = {name: explain(named, case.images, method=name).relevance for name in options.methods}
    names = named.output_names
    for method in ("cdam", "saliency"):
        for t, output in ((0, "malignancy"), (2, "margin")):
            own = maps[method][:, t]
            curve = fidelity(named, case.images, own, output, points=5)
            box = box_sensitivity(named, case.images, own, output, boxes=8)
            dele = deletion_insertion(named, case.images, own, output, cell=56)
            pixels = sensitivity_n(named, case.images, own, output, sets=8)
            place = localisation(own, case.masks, 2.0)
            others = [
                class_discrimination(named, case.images, own, maps[method][:, s], output, boxes=8, points=5)
                for s in range(3)
                if s != t
            ]
            for v, plane in enumerate(case.planes):
                at = (method, output, case.case_id, plane)
                assert value(rows, "fidelity/area", *at) == pytest.approx(curve.area[v], abs=1e-9)
                assert value(rows, "fidelity/at_stake", *at) == pytest.approx(curve.at_stake[v], abs=1e-9)
                assert value(rows, "box/area", *at) == pytest.approx(box.area[v], abs=1e-6)
                assert value(rows, "compactness/value", *at) == compactness(own).value[v]
                assert value(rows, "deletion/area_insertion", *at) == pytest.approx(dele.area_insertion[v], abs=1e-9)
                assert value(rows, "sensitivity_n/mean", *at) == pytest.approx(pixels.mean[v], abs=1e-6)
                assert value(rows, "localisation/auprc", *at) == pytest.approx(place.auprc[v], abs=1e-9)
                wanted = np.mean([found.fidelity[v] for found in others])
                assert value(rows, "discrimination/fidelity", *at) == pytest.approx(wanted, abs=1e-9)
                wanted = np.mean([found.box[v] for found in others])
                assert value(rows, "discrimination/box", *at) == pytest.approx(wanted, abs=1e-6)
    curve_rows = rows[(rows.metric == "fidelity/mif") & (rows.method == "cdam") & (rows.output == names[1])]
    some = curve_rows[(curve_rows.case == case.case_id) & (curve_rows.plane == "axial")].sort_values("x")
    np.testing.assert_allclose(some["x"], [0, 25, 50, 75, 100])
    np.testing.assert_allclose(some["value"], fidelity(named, case.images, maps["cdam"][:, 1], 1, points=5).mif[0])


def test_maps_that_ignore_the_output_discriminate_exactly_nothing(
    named: nn.Module, nodules: list[Case], tmp_path: Path
) -> None:
    options = BenchmarkOptions(methods=("attention", "attention_rollout"), metrics=("discrimination",), **FAST)
    rows = run_benchmark(named, nodules[:2], tmp_path, options).table()
    own = rows[rows.metric.isin(["discrimination/fidelity", "discrimination/box"])]
    assert len(own) == 2 * 3 * 3 * 2 * 2  # metrics, methods and the disc, outputs, cases, planes
    assert own["value"].tolist() == [0.0] * len(own)


def test_every_metric_runs_and_nothing_is_undefined_without_a_note(
    named: nn.Module, nodules: list[Case], tmp_path: Path
) -> None:
    attacks = {"map_attack_steps": 1, "map_attack_draws": 1}
    options = BenchmarkOptions(
        methods=("cdam", "smooth_cdam"), metrics=METRICS, replacements=("blur", "lung"), **FAST, **attacks
    )
    cases = [replace(nodules[0], altered={"kernel_smooth": nodules[0].images * 0.99}), *nodules[1:]]
    rows = run_benchmark(named, cases, tmp_path, options).table()
    scalars = rows[rows.x.isna()]
    undefined = scalars[~np.isfinite(scalars["value"])]
    assert (undefined["note"].astype(str) != "").all()
    assert len(undefined) > 0  # the first case has no known cause
    families = {metric.split("/")[0] for metric in scalars["metric"].unique()}
    further = {"fidelity_lung", "box_lung", "discrimination_lung", "readers", "kernel_smooth"}
    assert families >= {*METRICS, *further} - {"causes", "scan"}
    assert "causes/moved" in set(scalars["metric"])
    assert set(rows["method"]) == {
        "cdam", "smooth_cdam", "centred_disc", "cdam@random_weights", "smooth_cdam@random_weights", "readers", "model",
    }  # fmt: skip
    write_benchmark(tmp_path, resamples=50, known=published())
    text = (tmp_path / "benchmark.md").read_text(encoding="utf-8")
    assert "nan" not in text.lower().replace("malignan", "")
    assert "Research use only" in text
    assert "4 cases of 2 patients." in text
    assert "the case has no known cause of this output" in text
    assert (tmp_path / "curves-radial.svg").read_text(encoding="utf-8").count("</svg>") == 1


def test_a_killed_run_goes_on_where_it_was(vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    options = BenchmarkOptions(methods=("cdam",), metrics=("fidelity",), points=3, explain_batch=1)

    def load(k: int, deadly: bool) -> Case:
        if deadly and k == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return Case(images[k : k + 1], case_id=f"n{k}")

    def run(deadly: bool) -> BenchmarkRun:
        cases = [LazyCase(f"n{k}", lambda k=k: load(k, deadly)) for k in range(4)]
        return run_benchmark(vit, cases, tmp_path, options)

    child = multiprocessing.get_context("fork").Process(target=run, args=(True,))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    parts = tmp_path / "parts"
    assert sorted(path.name for path in parts.iterdir()) == ["n0.parquet", "n1.parquet"]
    (parts / ".tmp-12345678-n2.parquet").write_bytes(b"half")
    before = (parts / "n0.parquet").stat().st_mtime_ns
    again = run(False)
    assert (again.measured, again.already_there) == (2, 2)
    assert (parts / "n0.parquet").stat().st_mtime_ns == before
    assert sorted(path.name for path in parts.iterdir()) == [f"n{k}.parquet" for k in range(4)]


def test_results_do_not_depend_on_batches_or_shards(named: nn.Module, nodules: list[Case], tmp_path: Path) -> None:
    metrics = ("fidelity", "box", "adcc", "localisation", "radial", "causes")
    fast = {"methods": ("cdam",), "metrics": metrics, **FAST}
    whole = run_benchmark(named, nodules, tmp_path / "a", BenchmarkOptions(explain_batch=64, **fast)).table()
    small = BenchmarkOptions(explain_batch=1, max_batch=5, **fast)
    for shard in range(2):
        run_benchmark(named, nodules, tmp_path / "b", small, shard=(shard, 2))
    split = read_parts(tmp_path / "b")
    keys = ["case", "plane", "method", "output", "metric", "x"]
    a, b = (t.assign(**{k: t[k].astype(str) for k in keys}).sort_values(keys).reset_index() for t in (whole, split))
    pd.testing.assert_frame_equal(a[keys], b[keys])
    np.testing.assert_allclose(a["value"], b["value"], atol=1e-7)


def test_plain_batches_of_a_classifier_with_labels(vit: nn.Module, images: Tensor, tmp_path: Path) -> None:
    labels = torch.tensor([0, 1, 2, 3])
    batches = [(images[:3], labels[:3], None), (images[3:], labels[3:], None)]
    options = BenchmarkOptions(methods=("cdam",), metrics=("fidelity", "discrimination", "localisation"), **FAST)
    rows = run_benchmark(vit, batches, tmp_path, options).table()
    assert sorted(rows["case"].unique()) == [f"{k:06d}" for k in range(4)]
    assert set(rows["output"]) == {"target"}
    wanted = fidelity(vit, images, explain(vit, images, labels, "cdam").relevance[:, 0], labels, points=5)
    found = [value(rows, "fidelity/area", "cdam", "target", f"{k:06d}", "0") for k in range(4)]
    np.testing.assert_allclose(found, wanted.area, atol=1e-9)
    top = vit(images).detach().topk(2).indices
    wrong = torch.where(top[:, 0] == labels, top[:, 1], top[:, 0])
    maps = [explain(vit, images, classes, "cdam").relevance[:, 0] for classes in (labels, wrong)]
    apart = class_discrimination(vit, images, *maps, labels, boxes=8, points=5)
    found = [value(rows, "discrimination/fidelity", "cdam", "target", f"{k:06d}", "0") for k in range(4)]
    np.testing.assert_allclose(found, apart.fidelity, atol=1e-9)
    masks = rows[rows.metric == "localisation/iou"]
    assert masks["value"].isna().all()
    assert set(masks["note"]) == {"the case has no mask"}


def test_one_output_has_nothing_to_discriminate_from(on_patch: nn.Module, tmp_path: Path) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = on_patch

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[:, :1]

    image = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    options = BenchmarkOptions(methods=("saliency",), metrics=("discrimination",), disc=False, **FAST)
    rows = run_benchmark(One(), [Case(image)], tmp_path, options).table()
    own = rows[rows.metric == "discrimination/box"]
    assert own["value"].isna().all()
    assert set(own["note"]) == {"the model has one output: there is no other to discriminate from"}


def test_a_bad_case_is_listed_and_does_not_cost_the_others(
    named: nn.Module, nodules: list[Case], tmp_path: Path
) -> None:
    broken = Case(nodules[0].images * torch.nan, case_id="broken")

    def missing() -> Case:
        raise DataError("crop of nodule 7 is missing")

    samples = [nodules[1], broken, LazyCase("absent", missing), nodules[2]]
    options = BenchmarkOptions(methods=("cdam",), metrics=("compactness",))
    run = run_benchmark(named, samples, tmp_path, options)
    assert run.measured == 2
    assert [(row.nodule_id, row.stage) for row in run.skipped] == [("absent", "benchmark"), ("broken", "benchmark")]
    assert "not finite" in run.skipped[1].reason
    assert not part_path(tmp_path, "broken").exists()


def test_another_model_or_other_options_are_refused(
    named: nn.Module, vit: nn.Module, nodules: list[Case], tmp_path: Path
) -> None:
    options = BenchmarkOptions(methods=("cdam",), metrics=("compactness",))
    run_benchmark(named, nodules[:1], tmp_path, options)
    assert run_benchmark(named, nodules[:1], tmp_path, options.model_copy(update={"max_batch": 3})).already_there == 1
    with pytest.raises(UsageError, match="another model or with other options"):
        run_benchmark(named, nodules[:1], tmp_path, options.model_copy(update={"seed": 1}))
    with pytest.raises(UsageError, match="another model"):
        run_benchmark(vit, nodules[:1], tmp_path, options)


def test_wrong_usage_is_named(named: nn.Module, blind: nn.Module, nodules: list[Case], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'cdam'"):
        run_benchmark(named, nodules, tmp_path, BenchmarkOptions(methods=("cdamm",)))
    with pytest.raises(UsageError, match="attention cannot explain this model"):
        run_benchmark(blind, nodules, tmp_path, BenchmarkOptions(methods=("attention",)))
    with pytest.raises(UsageError, match=r"method_options of 'cdam'.*valid options"):
        run_benchmark(
            named, nodules, tmp_path, BenchmarkOptions(methods=("cdam",), method_options={"cdam": {"step": 3}})
        )
    with pytest.raises(UsageError, match="unknown output 'colour'"):
        run_benchmark(named, nodules, tmp_path / "o", BenchmarkOptions(methods=("cdam",), outputs=("colour",)))
    with pytest.raises(ValueError, match="given twice"):
        BenchmarkOptions(methods=("cdam", "cdam"))
    with pytest.raises(DataError, match="two cases are called"):
        run_benchmark(named, [nodules[0], nodules[0]], tmp_path / "t", BenchmarkOptions(methods=("cdam",), metrics=()))
    with pytest.raises(DataError, match="holds no benchmark results"):
        read_parts(tmp_path / "nowhere")
    with pytest.raises(DataError, match="masks are for 3 planes, images for 2"):
        Case(nodules[0].images, masks=torch.zeros(3, 4, 4), case_id="x")


def test_variants_of_a_method_stand_beside_it(named: nn.Module, nodules: list[Case], tmp_path: Path) -> None:
    options = BenchmarkOptions(
        methods=("smooth_cdam",),
        metrics=("compactness",),
        method_options={"smooth_cdam": {"samples": 2}, "smooth 5": {"method": "smooth_cdam", "samples": 5}},
        disc=False,
    )
    rows = run_benchmark(named, nodules[:1], tmp_path, options).table()
    assert set(rows["method"]) == {"smooth_cdam", "smooth 5"}
    wanted = explain(named, nodules[0].images, "margin", "smooth_cdam", samples=5).relevance[:, 0]
    found = value(rows, "compactness/value", "smooth 5", "margin", nodules[0].case_id, "axial")
    assert found == compactness(wanted).value[0]


def test_case_ids_become_file_names_that_differ(tmp_path: Path) -> None:
    names = {part_path(tmp_path, case).name for case in ("a/b", "a_b", "../a", "é" * 200, "a b")}
    assert len(names) == 5
    assert all("/" not in name and not name.startswith(".") for name in names)


def test_curves_by_a_tuned_copy_stand_beside_the_models_own(
    named: nn.Module, nodules: list[Case], tmp_path: Path
) -> None:
    options = BenchmarkOptions(methods=("cdam",), metrics=("fidelity",), disc=False, points=3, up_to=50)
    run = run_benchmark(named, nodules[:1], tmp_path / "out", options, model_masked=named)
    table = run.table()
    table = table[table["x"].isna()].set_index("metric")["value"]
    assert len(table["fidelity/area"]) == len(table["fidelity_tuned/area"])
    np.testing.assert_allclose(table["fidelity/area"], table["fidelity_tuned/area"])
    with pytest.raises(UsageError, match="another model or with other options"):
        run_benchmark(named, nodules[:1], tmp_path / "out", options)


def test_cases_of_one_size_are_measured_together_up_to_the_limit() -> None:
    sizes = {"a": (2, 8), "b": (2, 8), "c": (1, 8), "d": (1, 8), "e": (1, 16), "f": (5, 16)}
    cases = [Case(torch.zeros(count, 3, side, side), case_id=name) for name, (count, side) in sizes.items()]
    together = [[case.case_id for case in some] for some in _together(cases, limit=3)]
    assert together == [["a"], ["b", "c"], ["d"], ["e"], ["f"]]
