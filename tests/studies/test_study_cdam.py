"""The CDAM study: roles of two classes, concepts, sets of ImageNet images, and the script from end to end."""

from __future__ import annotations

import csv
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from studies.cdam_figures import attention_agreement
from studies.cdam_tables import FIDELITY, OWN_FIDELITY, SENSITIVITY, WRONG, cases, with_wrong
from studies.concept_maps import joined_vector
from studies.multi_object import read_multi
from studies.photo_arms import VIT, PhotoArms
from studies.study_measures import AUPRC, OWN_OTHER
from studies.study_sets import study_sets

ROOT = Path(__file__).parents[2]
LISTED = ROOT / "reports" / "imagenet" / "x_multi.csv"
QUICK = [
    "--quiet",
    "--set=benchmark.methods=[cdam,attention,input_x_gradient]",
    "--set=benchmark.boxes=4",
    "--set=benchmark.sizes=[32,96]",
    "--set=benchmark.points=5",
    "--set=concept_sizes=[2,3]",
    "--set=shown=1",
    "--set=sensitivity_sets=4",
]


@pytest.fixture(scope="module")
def study_cdam() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_cdam", ROOT / "pipelines" / "study_cdam.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["study_cdam"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of X_multi and four others, by their true numbers, with noise for pixels."""
    folder = tmp_path_factory.mktemp("imagenet") / "val"
    several = [one.number for one in read_multi(LISTED)[:4]]
    rng = np.random.default_rng(0)
    folder.mkdir()
    numbers = [*several, 1, 2, 3, 4]
    for number in numbers:
        pixels = rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"ILSVRC2012_val_{number:08d}.png")
    lines = [f"ILSVRC2012_val_{number:08d}.png {number % 1000}\n" for number in numbers]
    (folder / "val.txt").write_text("".join(lines))
    return folder


def table_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_an_image_of_two_classes_is_measured_in_one_role_or_both(
    photographs: Path, weights: Path, features: Path
) -> None:
    arms = PhotoArms(photographs, [str(weights)], features, size=56)
    arm = arms.masked(VIT)
    a, b = arm.images[0].classes
    both, one = (next(iter(cases(arm, roles))).load() for roles in (2, 1))
    assert both.targets is not None
    assert one.targets is not None
    assert (both.targets.tolist(), one.targets.tolist()) == ([[a, b], [b, a]], [[a, b]])
    assert torch.equal(both.images[0], both.images[1])
    masks = arm.masks(arm.images[0])
    assert masks.shape == (2, 56, 56)
    assert 0.1 < masks.mean() < 0.3
    single = arms.superclasses(VIT)
    only = next(iter(cases(single, 2))).load()
    assert only.targets is not None
    assert only.targets.tolist() == [[single.images[0].label]]


def test_what_joins_the_vectors_of_a_concept() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 1.0]])
    assert joined_vector(vectors, "mean").tolist() == pytest.approx([1, 7 / 3])
    assert joined_vector(vectors, "median").tolist() == [0, 2]
    assert joined_vector(vectors, "mean of unit vectors").tolist() == pytest.approx([0.2, (0.8 + 2) / 3])


def test_the_other_class_s_map_on_the_own_score() -> None:
    table = pd.DataFrame({"image": "a", "method": "cdam", "metric": [FIDELITY, OWN_FIDELITY], "value": [30.0, 40.0]})
    wrong = with_wrong(table.assign(note=""))
    assert wrong.loc[wrong["metric"] == WRONG, "value"].tolist() == [-10.0]


def test_agreement_with_attention_is_over_the_patches_of_each_class() -> None:
    tokens = pd.DataFrame(
        {"image": ["a"] * 8, "target": [0] * 4 + [1] * 4, "attention": [1, 2, 3, 4] * 2,
         "cdam": [1, -2, 3, -4, -4, 3, -2, 1]}
    )  # fmt: skip
    found = attention_agreement(tokens)
    assert found["spearman"].tolist() == [0.0]  # 1 for the first class, −1 for the second
    many = pd.DataFrame({"image": "a", "target": 0, "attention": range(20), "cdam": [1.0, -3.0] + [2.0] * 18})
    assert attention_agreement(many)["low"].tolist() == [4 / 40]


def test_sets_of_an_imagenet_folder_and_what_it_has_not(imagenet: Path) -> None:
    found = study_sets(imagenet, val=3, tune=2, multi=1000)
    assert len(found.val) == 3
    assert len(found.tune) == 2
    assert not {image.path for image in found.val} & {image.path for image in found.tune}
    wanted = {one.number: one.pair for one in read_multi(LISTED)[:4]}
    chosen = {int(image.path.stem[-8:]): image.classes for image in found.multi}
    assert wanted.items() <= chosen.items()
    assert any(row.reason == f"{len(chosen)} of 1000 images are in {imagenet.name}" for row in found.skipped)
    listed = study_sets(imagenet, val=3, tune=0, multi=6, listed=LISTED)
    assert [int(image.path.stem[-8:]) for image in listed.multi] == [one.number for one in read_multi(LISTED)[:4]]
    assert any("2 of 6 images" in row.reason for row in listed.skipped)
    assert {image.name for image in found.val} == {image.name for image in listed.val}


def test_the_script_on_photographs(
    study_cdam: ModuleType, photographs: Path, weights: Path, features: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run: Callable[..., int] = study_cdam.run
    arguments = [
        "--out",
        str(tmp_path),
        "--photographs",
        str(photographs),
        "--weights",
        str(weights),
        "--limit=2",
        *QUICK,
    ]
    arguments += ["--features", str(features), "--set=size=56", "--set=tune_images=1", "--set=sigmas=[0.1]"]
    arguments += ["--set=tuned=[]", "--set=peaks_size=56", "--set=peaks_images=2", "--set=alterations={mask: [0.5]}"]
    arguments += ["--set=localised=[cdam,attention]"]
    assert run(arguments) == 3
    skipped = {row["nodule_id"]: row["reason"] for row in table_of(tmp_path / "skipped.csv")}
    assert "--images FOLDER" in skipped["Table S1 on ImageNet's X_val"]
    assert "linear_probe.py" in skipped["dino_vits8"]
    assert "vit_b_16_swag-9ac1b537.pth" in skipped["swag_vitb16"]
    assert "swin_tiny" in skipped["timm:swin_tiny_patch4_window7_224"]
    assert "Table 1: partial_lrp, fidelity/area" in skipped, "printed, and not measured in this run"
    rows = table_of(tmp_path / "table.csv")
    by_place = {(row["data"], row["model"], row["method"], row["metric"]): row for row in rows}
    multi, model = "X_multi: MSRC", "dinov2_vits14, 56 px"
    attention = by_place[multi, model, "attention", OWN_FIDELITY]
    assert float(attention["here"]) == 0  # one map for both classes
    assert (float(attention["published"]), attention["place"]) == (0, "Table 2")
    assert float(by_place[multi, model, "attention", OWN_OTHER]["here"]) == 0
    blind = by_place[multi, model, "attention", SENSITIVITY]
    assert -1 <= float(blind["here"]) <= 1
    table_s1 = by_place["X_val: superclasses", model, "cdam", FIDELITY]
    assert (float(table_s1["published"]), table_s1["place"]) == (623, "Table S1")
    assert table_s1["differs"]
    assert 0 <= float(by_place[multi, "tf_efficientnet_lite0", "gradcam", AUPRC]["here"]) <= 1
    assert 0 <= float(by_place[multi, model, "concept, 2 images", AUPRC]["here"]) <= 1
    assert 0 <= float(by_place[multi, model, "cdam, calmed", AUPRC]["here"]) <= 1
    assert 0 <= float(by_place[multi, model, "smooth_cdam, mask 0.5", AUPRC]["here"]) <= 1
    claims = json.loads((tmp_path / "findings.json").read_text())
    assert {one["verdict"] for one in claims} <= {
        "shown",
        "refuted",
        "not decided (n < 10)",
        "not decided (no interval)",
    }
    assert sum(one["claim"].startswith("Sensitivity-n") for one in claims) == 1
    pictures = {path.name for path in (tmp_path / "figures").rglob("*.png")}
    assert pictures >= {"figure_1.png", "figure_3.png", "figure_S1.png"}
    assert any(name.startswith("curves-X_multi") for name in pictures)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").rglob("*.parquet")}
    assert run(arguments) == 3  # nothing is measured twice
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").rglob("*.parquet")}
    assert table_of(tmp_path / "table.csv") == rows
    assert "left out" in capsys.readouterr().err


def test_the_script_on_imagenet_with_weights(
    study_cdam: ModuleType, imagenet: Path, vit_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[Any] = [
        "--out", str(tmp_path), "--images", str(imagenet), "--limit=3", *QUICK, "--set=models=[timm:test_vit]",
        "--set=swag=test_vit2", "--set=tune_images=0", "--weights", f"timm:test_vit={vit_file}",
    ]  # fmt: skip
    assert study_cdam.run([*arguments, "--weights", f"test_vit2={tmp_path / 'absent'}"]) == 2
    assert study_cdam.run(arguments) == 3
    rows = [row for row in table_of(tmp_path / "table.csv") if row["here"]]
    assert {row["data"] for row in rows} == {"X_val", "X_multi"}
    known = {(row["method"], row["metric"]): row for row in rows}["attention", "discrimination/box"]
    assert (float(known["published"]), float(known["here"]), float(known["difference"])) == (-0.2, 0.0, 0.2)
    few = load_file(vit_file)
    file = tmp_path / "ten.safetensors"
    save_file(few | {"head.weight": few["head.weight"][:10].clone(), "head.bias": few["head.bias"][:10].clone()}, file)
    capsys.readouterr()
    wrong = [str(text).replace(str(vit_file), str(file)) for text in arguments]
    assert study_cdam.run(wrong) == 1
    assert "is a classifier of 10 classes; ImageNet's images need one of 1000" in capsys.readouterr().err
