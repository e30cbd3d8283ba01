"""The frame of a study: kept steps, what is missing is named, published figures beside ours, verdicts, exit codes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import Field
from studies.made_photos import MadePhotos
from studies.study import Study, StudyConfig, main
from studies.study_arms import MADE_PAIRS, StudyImage
from studies.study_measures import OWN_SHARE, own_share, tidy
from studies.study_table import Finding, Row, draw_rows
from torch import Tensor

from lidc_xai.evaluation.statistics import Interval, bootstrap_mean, paired_difference

SMALL = [f"--set=made_options.{key}" for key in ("train=4", "val=2", "pairs=8", "epochs=1")]


class Options(StudyConfig):
    cnns: list[str] = Field(["timm:test_vit"])


Work = Callable[[Study[Options]], None]


@pytest.fixture
def run(made: MadePhotos) -> Callable[..., int]:
    def call(work: Work, out: Path, *arguments: str) -> int:
        given = ["--out", str(out), "--made", str(made.folder.parent), "--quiet", *SMALL, *arguments]
        return main(
            Options, work, name="study_x", about="x", source="a paper", models=lambda c: c.cnns, arguments=given
        )

    return call


@pytest.fixture
def brightness() -> tuple[Work, list[str]]:
    """A study of one figure per image, and the names of the images in the order in which they were computed."""
    computed: list[str] = []

    def work(study: Study[Options]) -> None:
        for arm in study.each_arm(study.config.cnns, ["made_vgg"]):

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
    row, = rows_of(tmp_path / "table.csv")  # fmt: skip
    assert (row["data"], row["model"], row["n"]) == (MADE_PAIRS, "made_vgg", "8")
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["status"] == "done"
    assert told["results"]["arms"][0]["weights"]["accuracy"] >= 0
    for name in ("study.md", "study.html", "figure.svg", "figure.png", "findings.json"):
        assert (tmp_path / name).stat().st_size > 0
    assert "vgg16-397923af.pth" in (tmp_path / "study.html").read_text()


def test_a_killed_run_goes_on(run: Callable[..., int], brightness: tuple[Work, list[str]], tmp_path: Path) -> None:
    work, computed = brightness
    usual = ["--set", "cnns=[]", "--set", "batch=3"]
    assert run(work, tmp_path, *usual, "--limit", "6") == 0
    first = list(computed)
    table = (tmp_path / "table.csv").read_text()
    assert len(first) == 6
    assert run(work, tmp_path, *usual, "--limit", "6") == 0
    assert computed == first
    assert (tmp_path / "table.csv").read_text() == table
    next((tmp_path / "steps").rglob("*.parquet")).unlink()
    assert run(work, tmp_path, *usual, "--limit", "6") == 0
    assert len(computed) == 9
    assert run(work, tmp_path, *usual) == 0
    assert len(computed) == 11, "only the images beyond the limit"
    assert run(work, tmp_path, *usual, "--seed", "0", "--set", "cnns=[]") == 0
    assert len(computed) == 11


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
    known.write_text("source,table,method,metric,value,model\na paper,T1,all,brightness,-9.5,test_vit\n")
    out = tmp_path / "out"
    code = run(
        brightness[0], out, "--images", str(folder), "--weights", str(weights), "--published", str(known)
    )  # fmt: skip
    assert code == 3
    skipped = {row["nodule_id"]: row["reason"] for row in rows_of(out / "skipped.csv")}
    assert set(skipped) == {"broken.png", "n99999999"}
    rows = {row["data"]: row for row in rows_of(out / "table.csv")}
    assert rows["images"]["n"] == "3"
    assert float(rows["images"]["published"]) == -9.5
    assert float(rows["images"]["difference"]) == pytest.approx(float(rows["images"]["here"]) + 9.5)
    assert rows[MADE_PAIRS]["published"] == ""
    assert "-9.5" in (out / "study.md").read_text()


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
    assert {row["data"] for row in rows_of(tmp_path / "2" / "table.csv")} == {MADE_PAIRS, "images (parts)"}
    reason = rows_of(tmp_path / "1000" / "skipped.csv")[0]["reason"]
    assert "its weights have 1000 classes, these images 2" in reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "torchvision:vgg99=x.pth"], "this study's models are timm:test_vit"),
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


def test_weights_of_another_model(
    run: Callable[..., int], brightness: tuple[Work, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    made: MadePhotos, photo: Path, vit_file: Path,
) -> None:  # fmt: skip
    usual = ["--photos", str(photo.parent), "--weights", f"torchvision:alexnet={vit_file}"]
    assert run(brightness[0], tmp_path, "--set", "cnns=[torchvision:alexnet]", *usual) == 1
    assert "weights of another architecture" in capsys.readouterr().err


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
