"""Explained photographs: what is written, and that it is what ``explain`` gives."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lidc_xai.errors import DataError, ModelError, UsageError
from lidc_xai.explain import Explanation, LogOdds, explain
from lidc_xai.imagenet import explain_images, load_classifier, read_photo
from lidc_xai.imagenet.panel import overlay, strength
from lidc_xai.palette import UNSTABLE_GREY
from lidc_xai.progress import show_progress


def test_maps_values_and_sheet(photo: Path, vit_file: Path, tmp_path: Path) -> None:
    found = explain_images(
        [photo], "test_vit", tmp_path, weights=vit_file, targets=["boxer", 3, "n02123159"], score="log_odds",
        methods=["cdam", "saliency", "smoothgrad"], options={"samples": 3}, seed=4,
    )  # fmt: skip
    assert found.folders == [tmp_path / "halves"]
    assert not found.skipped
    classifier = load_classifier("test_vit", vit_file)
    image = read_photo(photo, classifier.spec)
    asked = [LogOdds(242), LogOdds(3), LogOdds(282)]
    wanted = explain(classifier.model, image.tensor, asked, ["cdam", "saliency", "smoothgrad"], samples=3, seed=4)
    with np.load(tmp_path / "halves" / "maps.npz", allow_pickle=False) as file:
        for name, result in wanted.items():
            np.testing.assert_allclose(file[name], result.relevance[0], rtol=1e-5, atol=1e-9)
        assert file["classes"].tolist() == [242, 3, 282]
        assert np.array_equal(file["image"], image.pixels)
        meta = json.loads(str(file["meta"]))
    values = json.loads((tmp_path / "halves" / "values.json").read_text())
    assert meta == values
    assert [entry["name"] for entry in values["targets"]] == ["boxer", "tiger shark", "tiger cat"]
    assert values["methods"]["cdam"]["engine"] == "exact"
    assert values["methods"]["cdam"]["values"] == pytest.approx(wanted["cdam"].values[0].tolist())
    assert values["weights"]["sha256"] == classifier.weights["sha256"]
    assert values["random_weights"] is False
    assert "warning" not in values
    probabilities = classifier.model(image.tensor).detach().softmax(-1)[0]
    assert values["targets"][0]["probability"] == pytest.approx(float(probabilities[242]), rel=1e-4)
    assert values["predicted"][0]["class"] == int(probabilities.argmax())
    with Image.open(tmp_path / "halves" / "panel.png") as sheet:
        assert min(sheet.size) > 300
        assert "random" not in sheet.text["Comment"]


def test_a_map_that_peaks_in_a_lone_token_is_told_of(
    photo: Path, vit_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(*args: Any, **options: Any) -> dict[str, Explanation]:
        found = explain(*args, **options)
        relevance = torch.full_like(found["cdam"].relevance, 0.1)
        relevance[..., 2, 3] = 1.0
        return {**found, "cdam": replace(found["cdam"], relevance=relevance)}

    monkeypatch.setattr("lidc_xai.imagenet.photo_maps.explain", spoiled)
    with show_progress():
        explain_images([photo], "test_vit", tmp_path, weights=vit_file, targets=[1, 2], methods=["cdam", "saliency"])
    values = json.loads((tmp_path / "halves" / "values.json").read_text())
    (note,) = values["methods"]["cdam"]["notes"]
    assert note.startswith("2 of 2 maps peak in one token")
    assert values["methods"]["saliency"]["notes"] == []
    assert f"halves.png: cdam: {note}" in capsys.readouterr().err


def test_random_weights_are_labelled_everywhere(photo: Path, tmp_path: Path, vit_file: Path) -> None:
    explain_images([photo], "test_vit", tmp_path / "random", weights="random", top=1)
    explain_images([photo], "test_vit", tmp_path / "file", weights=vit_file, top=1)
    values = json.loads((tmp_path / "random" / "halves" / "values.json").read_text())
    assert values["random_weights"] is True
    assert values["warning"].startswith("random weights")
    assert values["weights"]["source"] == "random"
    with np.load(tmp_path / "random" / "halves" / "maps.npz") as file:
        assert json.loads(str(file["meta"]))["random_weights"] is True
    with Image.open(tmp_path / "random" / "halves" / "panel.png") as sheet:
        assert sheet.text["Comment"].startswith("random weights")
        red = np.asarray(sheet.convert("RGB")).astype(int)[-40:]
    assert ((red[..., 0] - red[..., 1]) > 150).any(), "the sheet carries a line in red"


def test_each_method_has_its_own_default_score(photo: Path, tmp_path: Path, vit_file: Path) -> None:
    explain_images([photo], "test_vit", tmp_path, weights=vit_file, targets=[5], methods=["cdam", "reciprocam"])
    methods = json.loads((tmp_path / "halves" / "values.json").read_text())["methods"]
    assert methods["cdam"]["explained"] == ["5"]
    assert methods["reciprocam"]["explained"] == ["probability(5)"]


def test_all_methods_that_a_network_can_do(photo: Path, tmp_path: Path) -> None:
    explain_images(
        [photo], "test_resnet", tmp_path, weights="random", targets=[1], methods=["all"],
        options={"samples": 2, "steps": 2}, fit="whole", size=96,
    )  # fmt: skip
    values = json.loads((tmp_path / "halves" / "values.json").read_text())
    assert {"gradcam", "fullgrad", "rsi_gradcam", "random"} <= set(values["methods"])
    assert "cdam" not in values["methods"]
    assert values["input"] == {"size": [96, 96], "fit": "whole", "photograph": [240, 160], "seen_box": [0, 0, 240, 160]}
    assert np.isfinite(values["methods"]["fullgrad"]["extras"]["residual"]).all()


def test_what_cannot_be_read_is_listed(photo: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("nothing")
    found = explain_images([bad, photo], "test_resnet", tmp_path / "out", weights="random", top=1)
    assert [row.nodule_id for row in found.skipped] == ["bad.png"]
    assert len(found.folders) == 1
    with pytest.raises(DataError, match=r"none of 1 pictures could be read; first: .*bad.png"):
        explain_images([bad], "test_resnet", tmp_path / "out", weights="random")


def test_equal_names_do_not_overwrite_each_other(photo: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    copy = tmp_path / "a" / photo.name
    copy.write_bytes(photo.read_bytes())
    found = explain_images([photo, copy], "test_resnet", tmp_path / "out", weights="random", top=1, size=64)
    assert [folder.name for folder in found.folders] == ["halves", "halves-2"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"score": "odds"}, UsageError, "score is one of logit"),
        ({"top": 0}, UsageError, "top is a number of classes from 1"),
        ({"methods": ["gradcamm"]}, UsageError, "unknown method 'gradcamm'; did you mean 'gradcam'"),
        ({"methods": ["cdam"]}, ModelError, "cdam cannot explain this model"),
        ({"methods": ["gradcam"], "options": {"samples": 3}}, UsageError, "gradcam has no option 'samples'"),
        ({"targets": ["crane"]}, UsageError, "ambiguous"),
    ],
)
def test_what_does_not_fit_is_refused(
    photo: Path, tmp_path: Path, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        explain_images([photo], "test_resnet", tmp_path, weights="random", **options)  # type: ignore[arg-type]


def test_a_classifier_without_names_takes_numbers(photo: Path, tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "three.pth")
    with pytest.raises(UsageError, match="with 3 outputs is no ImageNet classifier"):
        explain_images([photo], "test_resnet", tmp_path, weights=tmp_path / "three.pth", targets=["boxer"])
    (tmp_path / "names.txt").write_text("one\ntwo\nboxer\n")
    explain_images(
        [photo], "test_resnet", tmp_path, weights=tmp_path / "three.pth", targets=["boxer", "0"], size=64,
        labels=tmp_path / "names.txt",
    )  # fmt: skip
    targets = json.loads((tmp_path / "halves" / "values.json").read_text())["targets"]
    assert [(entry["class"], entry["name"]) for entry in targets] == [(2, "boxer"), (0, "one")]


def test_colours_say_the_sign() -> None:
    pixels = np.full((8, 8, 3), 128, np.uint8)
    raw = np.zeros((4, 4), np.float32)
    raw[0, 0], raw[3, 3] = 2.0, -1.0
    shown, scale = strength(raw, "cdam", (8, 8))
    assert scale == "±2"
    assert shown[0, 0] == 1
    assert shown[7, 7] == -0.5
    image = overlay(pixels, shown)
    assert image[0, 0, 0] > image[0, 0, 2], "orange is positive"
    assert image[7, 7, 2] > image[7, 7, 0], "blue is negative"
    np.testing.assert_allclose(image[0, 7], 128 / 255, atol=1e-6)
    shown, scale = strength(np.array([[0.2, 0.4], [0.6, 1.0]]), "reciprocam", (2, 2))
    assert scale == "0.2 … 1"
    np.testing.assert_allclose(shown, [[0, 0.25], [0.5, 1]], atol=1e-6)
    assert (strength(np.zeros((2, 2)), "cdam", (2, 2))[0] == 0).all()


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Exit code of ``lidc-xai explain-image``."""
    from lidc_xai.cli import main

    monkeypatch.setattr(sys, "argv", ["lidc-xai", "explain-image", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command_on_photographs(
    shared: Path, tmp_path: Path, vit_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two animals, two classes side by side."""
    photos = [str(shared / "photos" / name) for name in ("chefer/catdog.png", "grad-cam/both.png")]
    code = run_command(
        monkeypatch, *photos, "--model", "test_vit", "--weights", str(vit_file), "--target", "bull mastiff,tiger cat",
        "--method", "cdam,gradcam", "--method", "attention", "--out", str(tmp_path), "--quiet", "--device", "cpu",
    )  # fmt: skip
    printed = capsys.readouterr()
    assert code == 0, printed.err
    for name in ("catdog", "both"):
        assert str(tmp_path / name / "panel.png") in printed.out
        values = json.loads((tmp_path / name / "values.json").read_text())
        assert list(values["methods"]) == ["cdam", "gradcam", "attention"]
        assert [entry["class"] for entry in values["targets"]] == [243, 282]
    assert json.loads((tmp_path / "run.json").read_text())["results"]["explained"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["PHOTO", "--out", "OUT"], 2, "--model is missing"),
        (["--model", "test_resnet", "--weights", "random", "--out", "OUT"], 2, "no picture was given"),
        (["PHOTO", "--model", "test_resnet"], 2, "--out is missing"),
        (["PHOTO", "--model", "test_resnet", "--out", "OUT", "--top", "0"], 2, "field 'top'"),
        (["PHOTO", "--model", "test_resnet", "--weights", "OUT/no.pth", "--out", "OUT"], 2, "no such weights file"),
        (["PHOTO", "--model", "test_resnet", "--out", "OUT"], 1, "as --weights FILE"),
        (["PHOTO", "BAD", "--model", "test_resnet", "--weights", "random", "--out", "OUT"], 3, "1 left out"),
    ],
)  # fmt: skip
def test_how_the_command_ends(
    photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], code: int, words: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "bad.png").write_text("nothing")
    places = {"PHOTO": str(photo), "OUT": str(tmp_path / "out"), "BAD": str(tmp_path / "bad.png")}
    given = [places.get(part, part.replace("OUT/", f"{tmp_path}/")) for part in arguments]
    ended = run_command(monkeypatch, *given)
    error = capsys.readouterr().err
    assert ended == code, error
    assert words in error
    if code == 3:
        assert "bad.png" in (tmp_path / "out" / "skipped.csv").read_text()


def test_patches_without_a_stable_sign_are_grey() -> None:
    pixels, shown = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8), np.float32)
    image = overlay(pixels, shown, np.array([[True, False], [False, False]]))
    grey = np.ptp(image, axis=-1) == 0
    assert not grey[:4, :4].any()
    assert grey[4:].all()
    assert grey[:, 4:].all()
    opacity = image[0, 0, 0] / (236 / 255)  # full orange
    assert image[7, 7, 0] == pytest.approx(opacity * UNSTABLE_GREY / 255, abs=0.01)
