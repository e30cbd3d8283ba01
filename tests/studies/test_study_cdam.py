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
from studies.cdam_tables import cases
from studies.concept_maps import maps_of, vector_of
from studies.made_photos import MadePhotos
from studies.multi_object import read_multi
from studies.study_arms import MADE_PAIRS, MADE_SINGLES, Arm, made_images
from studies.study_sets import study_sets

from lidc_xai.errors import DataError
from lidc_xai.imagenet import load_classifier

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
]
SMALL = [f"--set=made_options.{key}" for key in ("train=4", "val=2", "pairs=8", "epochs=1")]


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


def test_an_image_of_two_classes_is_measured_in_both_roles(made: MadePhotos) -> None:
    classifier = load_classifier("made_vit", "random", labels=made.classes_file)
    arm = Arm(MADE_PAIRS, classifier, made_images(made, MADE_PAIRS, 2), made=made)
    case = next(iter(cases(arm))).load()
    a, b = arm.images[0].classes
    assert case.targets is not None
    assert case.masks is not None
    assert case.targets.tolist() == [[a, b], [b, a]]
    assert torch.equal(case.images[0], case.images[1])
    for plane, label in enumerate((a, b)):
        assert np.array_equal(case.masks[plane].numpy(), made.mask(arm.images[0].path, label))
    single = Arm(MADE_SINGLES, classifier, made_images(made, MADE_SINGLES, 1), made=made)
    only = next(iter(cases(single))).load()
    assert only.targets is not None
    assert only.targets.tolist() == [[single.images[0].label]]


def test_a_concept_is_the_mean_of_what_the_head_reads(made: MadePhotos) -> None:
    classifier = load_classifier("made_vit", "random", labels=made.classes_file)
    paths = [path for path, label in made.singles("train") if label == 2]
    vector = vector_of(classifier, paths, 3)
    one = torch.stack([vector_of(classifier, [path], 1) for path in paths[:3]]).mean(0)
    torch.testing.assert_close(vector, one)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both = maps_of(classifier, image, [vector, -vector])
    assert both.shape == (1, 2, 8, 8)
    torch.testing.assert_close(both[:, 0], -both[:, 1])
    with pytest.raises(DataError, match="4 images for a concept of 30"):
        vector_of(classifier, paths, 30)


def test_agreement_with_attention_is_over_the_patches_of_each_class() -> None:
    tokens = pd.DataFrame(
        {"image": ["a"] * 8, "target": [0] * 4 + [1] * 4, "attention": [1, 2, 3, 4] * 2,
         "cdam": [1, -2, 3, -4, -4, 3, -2, 1]}
    )  # fmt: skip
    found = attention_agreement(tokens)
    assert found["value"].tolist() == [0.0]  # 1 for the first class, −1 for the second


def test_sets_of_an_imagenet_folder_and_what_it_has_not(imagenet: Path) -> None:
    found = study_sets(imagenet, val=3, tune=2, multi=1000)
    assert len(found.val) == 3
    assert len(found.tune) == 2
    assert not {image.path for image in found.val} & {image.path for image in found.tune}
    wanted = {one.number: one.pair for one in read_multi(LISTED)[:4]}
    chosen = {int(image.path.stem[-8:]): image.classes for image in found.multi}
    assert wanted.items() <= chosen.items()
    assert any(row.reason == f"{len(chosen)} of 1000 images are in {imagenet}" for row in found.skipped)
    listed = study_sets(imagenet, val=3, tune=0, multi=6, listed=LISTED)
    assert [int(image.path.stem[-8:]) for image in listed.multi] == [one.number for one in read_multi(LISTED)[:4]]
    assert any("2 of 6 images" in row.reason for row in listed.skipped)
    assert {image.name for image in found.val} == {image.name for image in listed.val}


def test_the_script_without_images_and_weights(
    study_cdam: ModuleType, made: MadePhotos, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Callable[..., int] = study_cdam.run
    arguments = ["--out", str(tmp_path), "--made", str(made.folder.parent), "--limit=2", *QUICK, *SMALL]
    arguments += ["--set=tune_images=2", "--set=sigmas=[0.1]", "--photos", str(made.folder / "val" / "striped_disc")]
    assert run(arguments) == 3
    skipped = {row["nodule_id"]: row["reason"] for row in table_of(tmp_path / "skipped.csv")}
    assert skipped.keys() == {
        "Tables 1, 3, S1", "Table 2", "Figures 1, 3 to 6, S1", "Figure S14", "dino_vits8", "swag_vitb16"
    }  # fmt: skip
    assert "--images FOLDER" in skipped["Table 2"]
    assert "linear_probe.py" in skipped["dino_vits8"]
    assert "vit_b_16_swag-9ac1b537.pth" in skipped["swag_vitb16"]
    rows = table_of(tmp_path / "table.csv")
    assert {row["data"] for row in rows} == {MADE_SINGLES, MADE_PAIRS, "photographs", "X_val", "X_multi"}
    by_place = {(row["data"], row["method"], row["metric"]): row for row in rows}
    for metric in ("discrimination/fidelity", "discrimination/box"):
        assert float(by_place[MADE_PAIRS, "attention", metric]["here"]) == 0  # one map for both classes
    published = by_place["X_val", "smoothgrad", "fidelity/area"]
    assert (published["published"], published["here"]) == ("-4.0", "")
    claims = json.loads((tmp_path / "findings.json").read_text())
    assert {one["verdict"] for one in claims} <= {"shown", "refuted", "not decided (n < 10)"}
    assert any(one["claim"] == "a concept of 2 images is found where it is" for one in claims)
    assert not any(one["data"] == "photographs" for one in claims)
    pictures = {path.name for path in (tmp_path / "figures").rglob("*.png")}
    assert pictures >= {"figure_1.png", "figure_3.png", "figure_4.png", "figure_S1.png"}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").rglob("*.parquet")}
    assert run(arguments) == 3  # nothing is measured twice
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "steps").rglob("*.parquet")}
    assert table_of(tmp_path / "table.csv") == rows
    assert "6 left out" in capsys.readouterr().err


def test_the_script_on_imagenet_with_weights(
    study_cdam: ModuleType, imagenet: Path, vit_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: list[Any] = [
        "--out", str(tmp_path), "--images", str(imagenet), "--limit=3", *QUICK, "--set=models=[timm:test_vit]",
        "--set=swag=test_vit2", "--set=small=[]", "--set=tune_images=0", "--weights", f"timm:test_vit={vit_file}",
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
