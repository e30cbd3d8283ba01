"""The frame of a study: kept steps, what is missing is named, published figures beside ours, verdicts, exit codes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydantic import Field
from studies.photo_arms import CNN, VIT
from studies.study import Maker, Study, StudyConfig, main
from studies.study_arms import Arm, StudyImage, find_weights
from studies.study_measures import OWN_SHARE, own_share, tidy
from studies.study_table import Finding, Row, draw_rows
from torch import Tensor

from lidc_xai.errors import UsageError
from lidc_xai.evaluation.statistics import Interval, bootstrap_mean, paired_difference

MULTI, VAL = "X_multi: MSRC", "X_val: superclasses"


class Options(StudyConfig):
    cnns: list[str] = Field(["timm:test_vit"])


Work = Callable[[Study[Options]], None]


@pytest.fixture
def run(photographs: Path, weights: Path, features: Path) -> Callable[..., int]:
    def call(work: Work, out: Path, *arguments: str) -> int:
        given = ["--out", str(out), "--photographs", str(photographs), "--features", str(features), "--quiet"]
        given += ["--set", "size=56", "--weights", f"{VIT}={weights / VIT}.safetensors", *arguments]
        return main(
            Options, work, name="study_x", about="x", source="a paper", models=lambda c: c.cnns, arguments=given
        )

    return call


@pytest.fixture
def brightness() -> tuple[Work, list[str]]:
    """A study of one figure per image, and the names of the images in the order in which they were computed."""
    computed: list[str] = []

    def work(study: Study[Options]) -> None:
        makers: list[Maker] = [
            ((VIT,), lambda arms: arms.masked(VIT)),
            ((VIT,), lambda arms: arms.superclasses(VIT)),
        ]
        for arm in study.each_arm(study.config.cnns, makers):

            def measure(images: Sequence[StudyImage], batch: Tensor) -> pd.DataFrame:
                computed.extend(image.name for image in images)
                return tidy(images, "all", {"brightness": batch.mean((1, 2, 3)).cpu().numpy()})

            table = study.by_batch(arm, "brightness", measure)
            study.means(arm, table)
            table = pd.concat([table, table.assign(method="less", value=table["value"] - 1)])
            study.claim(arm, "all is brighter than less", table, "brightness", "all", "less")
        study.finish("Brightness", ["about"], {"brightness": "mean"})

    return work, computed


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_what_is_missing_is_named_and_the_rest_runs(
    run: Callable[..., int], brightness: tuple[Work, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(brightness[0], tmp_path, "--set", "cnns=[torchvision:vgg16]") == 3
    skipped = {row["nodule_id"]: row["reason"] for row in rows_of(tmp_path / "skipped.csv")}
    assert "--images FOLDER" in skipped["the paper's images"]
    assert "vgg16-397923af.pth" in skipped["torchvision:vgg16"]
    assert "--weights torchvision:vgg16=FILE" in skipped["torchvision:vgg16"]
    assert "study_x: 2 left out" in capsys.readouterr().err
    rows = {(row["data"], row["method"]): row for row in rows_of(tmp_path / "table.csv")}
    assert rows[MULTI, "all"]["model"] == "dinov2_vits14, 56 px"
    assert rows[VAL, "all"]["n"] == "30"
    assert 0 <= float(rows[MULTI, "multi-label head"]["here"]) <= 1
    assert float(rows[VAL, "chance"]["here"]) == 0.5
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["status"] == "done"
    assert told["results"]["arms"][0]["differs"].startswith("model: dinov2_vits14, 56 px; images: MSRC")
    for name in ("study.md", "study.html", "figure.svg", "figure.png", "findings.json"):
        assert (tmp_path / name).stat().st_size > 0
    assert "vgg16-397923af.pth" in (tmp_path / "study.html").read_text()


def test_a_killed_run_goes_on(run: Callable[..., int], brightness: tuple[Work, list[str]], tmp_path: Path) -> None:
    work, computed = brightness
    usual = ["--set", "cnns=[]", "--set", "batch=3"]
    assert run(work, tmp_path, *usual, "--limit", "6") == 0
    first = list(computed)
    table = (tmp_path / "table.csv").read_text()
    multi = len([name for name in first if name.endswith(".jpg")])
    assert 0 < multi <= 6
    assert len(first) - multi == 6
    assert run(work, tmp_path, *usual, "--limit", "6") == 0
    assert computed == first
    assert (tmp_path / "table.csv").read_text() == table
    removed = next(path for path in (tmp_path / "steps").rglob("*.parquet") if "MSRC" in str(path))
    again = len(pd.read_parquet(removed))
    removed.unlink()
    assert run(work, tmp_path, *usual, "--limit", "6") == 0
    assert len(computed) == len(first) + again
    assert run(work, tmp_path, *usual, "--limit", "6", "--seed", "0", "--set", "cnns=[]") == 0
    assert len(computed) == len(first) + again


def test_a_time_limit_leaves_the_rest_for_the_next_run(
    run: Callable[..., int], brightness: tuple[Work, list[str]], tmp_path: Path
) -> None:
    usual = ["--set", "cnns=[]", "--limit", "3"]
    assert run(brightness[0], tmp_path, *usual, "--minutes", "0.0000001") == 3
    assert brightness[1] == []
    skipped = [row["reason"] for row in rows_of(tmp_path / "skipped.csv")]
    assert any("3 of 3 images were not reached" in reason for reason in skipped)
    assert run(brightness[0], tmp_path, *usual) == 0
    assert len(brightness[1]) > 3


def test_every_image_meets_the_head_that_did_not_learn_from_it(run: Callable[..., int], tmp_path: Path) -> None:
    """The logits of a batch are those of the head of its own fold, and the folds' heads differ."""
    arms: list[Arm] = []

    def work(study: Study[Options]) -> None:
        for arm in study.on_photographs([((VIT,), lambda arms: arms.superclasses(VIT))]):
            arms.append(arm)

            def measure(images: Sequence[StudyImage], batch: Tensor, arm: Arm = arm) -> pd.DataFrame:
                fold, = {image.fold for image in images}  # fmt: skip
                network: Any = arm.classifier.model
                assert torch.equal(network.get_classifier().weight, arm.heads[fold][0])
                return tidy(images, "all", {"fold": [fold] * len(images)})

            study.by_batch(arm, "folds", measure)
        study.finish("Folds", [], {})

    assert run(work, tmp_path, "--set", "cnns=[]") == 0
    (arm,) = arms
    assert sorted({image.fold for image in arm.images}) == [0, 1, 2, 3, 4]
    assert not torch.equal(arm.heads[0][0], arm.heads[1][0])
    for _, images in arm.by_fold():
        arm.read(images[0])
        assert torch.equal(arm.classifier.model.get_classifier().weight, arm.heads[images[0].fold][0])  # type: ignore[operator]


def test_an_arm_without_all_its_networks_is_left_out_with_the_file_to_bring(
    run: Callable[..., int], tmp_path: Path
) -> None:
    """A head distilled from the CNN needs both files; the study goes on with the others."""
    made: list[str] = []

    def work(study: Study[Options]) -> None:
        makers: list[Maker] = [
            ((VIT, CNN), lambda arms: arms.distilled(VIT)),
            ((VIT,), lambda arms: arms.superclasses(VIT)),
        ]
        made.extend(arm.data for arm in study.on_photographs(makers))
        study.finish("Arms", [], {})

    assert run(work, tmp_path, "--set", "cnns=[]") == 3
    assert made == [VAL]
    (left,) = rows_of(tmp_path / "skipped.csv")
    assert left["nodule_id"] == CNN
    assert "--weights" in left["reason"]


def test_images_of_the_paper_stand_beside_published_figures(
    run: Callable[..., int], brightness: tuple[Work, list[str]], tmp_path: Path
) -> None:
    """An ImageNet folder with one broken picture, one unknown class; weights made here."""
    folder = tmp_path / "val"
    for name in ("n01440764", "n99999999"):
        (folder / name).mkdir(parents=True)
    for k in range(3):
        Image.fromarray(np.full((170, 200, 3), 60 * k, np.uint8)).save(folder / "n01440764" / f"{k}.png")
    Image.new("RGB", (8, 8)).save(folder / "n99999999" / "x.png")
    (folder / "n01440764" / "broken.png").write_bytes(b"no picture")
    from safetensors.torch import save_file
    from timm import create_model

    weights = tmp_path / "weights"
    weights.mkdir()
    save_file(create_model("test_vit").state_dict(), weights / "test_vit.safetensors")
    known = tmp_path / "published.csv"
    known.write_text(
        "source,table,images,method,metric,value,model\n"
        "a paper,Table 1,ImageNet validation,all,brightness,-9.5,test_vit\n"
        "a paper,Table 1,X_multi,all,brightness,3,test_vit\na paper,Table S1,X_val,all,brightness,4,test_vit\n"
    )
    out = tmp_path / "out"
    own = f"timm:test_vit={weights / 'test_vit.safetensors'}"
    code = run(brightness[0], out, "--images", str(folder), "--weights", own, "--published", str(known))
    assert code == 3
    skipped = {row["nodule_id"]: row["reason"] for row in rows_of(out / "skipped.csv")}
    assert set(skipped) == {"broken.png", "n99999999"}
    rows = {row["data"]: row for row in rows_of(out / "table.csv") if row["method"] == "all"}
    assert rows["images"]["n"] == "3"
    assert float(rows["images"]["published"]) == -9.5
    assert float(rows["images"]["difference"]) == pytest.approx(float(rows["images"]["here"]) + 9.5)
    assert rows["images"]["differs"] == ""
    for data, figure, place in ((MULTI, 3, "Table 1"), (VAL, 4, "Table S1")):
        assert (float(rows[data]["published"]), rows[data]["place"]) == (figure, place)
        assert rows[data]["differs"].startswith("model: dinov2_vits14, 56 px; images")
        assert rows[data]["difference"] == "", "of another model on other images: no difference"
    assert "-9.5 (Table 1)" in (out / "study.md").read_text()


def test_fine_tuned_classifiers_meet_their_own_images(
    run: Callable[..., int], brightness: tuple[Work, list[str]], tmp_path: Path
) -> None:
    """A folder of two classes with train/ and test/: a classifier of two classes runs, one of 1000 is named."""
    from safetensors.torch import save_file
    from timm import create_model

    for part in ("train", "test"):
        for name in ("cake", "soup"):
            (tmp_path / "food" / part / name).mkdir(parents=True)
            Image.new("RGB", (20, 20)).save(tmp_path / "food" / part / name / f"{part}-{name}.png")
    weights = {}
    for count in (2, 1000):
        weights[count] = tmp_path / f"{count}.safetensors"
        save_file(create_model("test_vit", num_classes=count).state_dict(), weights[count])
    for count, code in ((2, 0), (1000, 3)):
        given = ["--images", str(tmp_path / "food"), "--weights", f"timm:test_vit={weights[count]}"]
        assert run(brightness[0], tmp_path / str(count), *given) == code
    assert {row["data"] for row in rows_of(tmp_path / "2" / "table.csv")} == {MULTI, VAL, "images (parts)"}
    reason = rows_of(tmp_path / "1000" / "skipped.csv")[0]["reason"]
    assert "its weights have 1000 classes, these images 2" in reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "torchvision:vgg99=x.pth"], "this study's models are timm:test_vit"),
        (["--photographs", "absent"], "absent: no such folder"),
        (["--weights", "timm:test_vit=absent.pth"], "no such file"),
        (["--weights", "absent"], "wanted MODEL=FILE"),
        (["--set", "cnns=[resnet51]"], "unknown model 'resnet51'"),
        (["--images", "absent", "--weights", "timm:test_vit=random"], "absent: no such folder"),
        (["--photos", "absent"], "absent: no such folder"),
        (["--set", "epochs=3"], "epochs"),
        (["--limit", "0"], "limit"),
        (["--device", "abacus"], "--device abacus"),
        (["--published", "absent.csv"], "absent.csv"),
    ],
)
def test_bad_usage_is_one_line(
    run: Callable[..., int],
    brightness: tuple[Work, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    assert run(brightness[0], tmp_path / "out", *arguments) in (1, 2)
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error


def test_a_spoiled_set_is_told_before_anything_is_computed(
    run: Callable[..., int], brightness: tuple[Work, list[str]], photographs: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spoiled = tmp_path / "photographs"
    shutil.copytree(photographs, spoiled)
    (spoiled / "ilsvrc_val" / "labels.csv").write_text("file,label,n_real\n0.JPEG,1000,1\n")
    assert run(brightness[0], tmp_path / "out", "--photographs", str(spoiled)) == 1
    assert "has label 1000" in capsys.readouterr().err
    assert not brightness[1], "the other set is whole, and nothing of it is computed"


def test_weights_of_another_model(
    run: Callable[..., int], brightness: tuple[Work, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    photo: Path, vit_file: Path,
) -> None:  # fmt: skip
    usual = ["--photos", str(photo.parent), "--weights", f"torchvision:alexnet={vit_file}"]
    assert run(brightness[0], tmp_path, "--set", "cnns=[torchvision:alexnet]", *usual) == 1
    assert "weights of another architecture" in capsys.readouterr().err


def test_a_missing_weights_file_names_the_command() -> None:
    with pytest.raises(
        UsageError,
        match=r"absent\.safetensors: no such file; .*get them with `curl -LO https://.*dinov2_vits14_pretrain\.pth`",
    ):
        find_weights(VIT, [f"{VIT}=absent.safetensors"])


def test_photographs_without_the_network_name_the_command(
    brightness: tuple[Work, list[str]], photographs: Path, tmp_path: Path
) -> None:
    given = ["--out", str(tmp_path), "--photographs", str(photographs), "--quiet", "--set", "cnns=[]"]
    code = main(
        Options, brightness[0], name="x", about="x", source="x", models=lambda c: c.cnns, arguments=given
    )  # fmt: skip
    assert code == 3
    reasons = {row["nodule_id"]: row["reason"] for row in rows_of(tmp_path / "skipped.csv")}
    assert "get them with `curl -LO https://" in reasons[VIT]
    assert "--weights dinov2_vits14=FILE" in reasons[VIT]


def test_verdicts() -> None:
    values = np.arange(20.0)
    up = paired_difference(values + 1, values + 0.5 * np.sin(values))
    for sign, verdict in ((1, "shown"), (-1, "refuted")):
        found = Finding.of("x", "d", "m", up, sign=sign)
        assert found.verdict == verdict
        assert found.low <= found.effect <= found.high
    assert Finding.of("x", "d", "m", bootstrap_mean(values[:5] + 1)).verdict == "not decided (n < 10)"
    assert Finding.of("x", "d", "m", bootstrap_mean(np.sin(values))).verdict == "not decided"
    assert Finding.of("x", "d", "m", Interval(1, np.nan, np.nan, 1, 1, 0)).verdict == "not decided (no interval)"


def test_own_share() -> None:
    own, other = np.zeros((2, 1, 4, 4), bool)
    own[0, 0], other[0, 3] = True, True
    maps = np.zeros((1, 4, 4))
    maps[0, 0], maps[0, 3] = 3.0, 1.0
    assert own_share(maps, own, other).tolist() == [0.75]
    assert own_share(maps, other, own).tolist() == [0.25]
    assert np.isnan(own_share(-maps, own, other)).all()
    assert OWN_SHARE.startswith("objects/")


def test_the_figure_shows_every_row() -> None:
    rows = [Row("d", "m", method, "a", value, value - 1, value + 1, 5) for method, value in (("x", 1.0), ("y", 2.0))]
    figure = draw_rows([*rows, Row("d", "m", "z", "a")], {"a": "title", "b": "none"}, "T")
    panel = figure.axes[0]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["x", "y"]
    assert panel.get_title() == "title"
