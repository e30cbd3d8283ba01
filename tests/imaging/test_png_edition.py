"""The PNG edition: made here from simulated CT (so that the true HU are known), and the real one where it is there."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lidc_xai.annotations import COHORTS, Nodule, select_cohort
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging import CTVolume, crop_nodule, read_ct
from lidc_xai.imaging.crops.contours import contours_box, contours_mask
from lidc_xai.imaging.png.edition import png_crop, prepare_png
from lidc_xai.imaging.png.hu import calibrate
from lidc_xai.imaging.png.learned import BoostedTrees, corrected, hu_of_pictures, picture_features, trees
from lidc_xai.imaging.png.lines import HuLines
from lidc_xai.imaging.png.match import match_nodule
from lidc_xai.imaging.png.source import PngEdition, PngNodule
from lidc_xai.simulate import simulate_ct

FIRST = "LIDC-IDRI-0001-s1-n0"
SIZE = 128


def pictures(volume: CTVolume, nodule: Nodule) -> tuple[PngNodule, np.ndarray, tuple[int, int, int]]:
    """A nodule as the edition shows it, its true HU, and the stored (i, j, k) of the first voxel."""
    contours = [contour for reading in nodule.readers for contour in reading.contours]
    box = contours_box(contours, [contour.k for contour in contours])
    middle = (np.array(box.low) + np.array(box.high)) // 2
    i, j = np.clip(middle[:2] - SIZE // 2, 0, 512 - SIZE).tolist()
    first = int(np.abs(volume.slice_z_mm - nodule.slice_positions_mm[box.low[2]]).argmin())
    depth = box.high[2] - box.low[2] + 1
    true = volume.stored[first : first + depth, j : j + SIZE, i : i + SIZE]
    low, high = true.min(axis=(1, 2), keepdims=True), true.max(axis=(1, 2), keepdims=True)
    masks = np.zeros((4, depth, SIZE, SIZE), bool)
    for reader, reading in enumerate(nodule.readers[:4]):
        mask = contours_mask(reading.contours, [c.k for c in reading.contours], box)
        at = (slice(None), slice(box.low[1] - j, box.high[1] - j + 1), slice(box.low[0] - i, box.high[0] - i + 1))
        masks[reader][at] = mask
    grey = np.round((true - low) / (high - low) * 255).astype(np.uint8)
    return PngNodule(nodule.patient_id, nodule.cluster_index, grey, masks), true, (i, j, box.low[2])


def files_of(png: PngNodule) -> dict[str, bytes]:
    files = {}
    parts = {"images": png.images, **{f"mask-{r}": (mask * 255).astype(np.uint8) for r, mask in enumerate(png.masks)}}
    for part, stack in parts.items():
        for number, image in enumerate(stack):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            files[f"LIDC-IDRI-slices/{png.name}/{part}/slice-{number}.png"] = buffer.getvalue()
    return files


def write_zip(path: Path, *nodules: PngNodule) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for png in nodules:
            for name, data in files_of(png).items():
                archive.writestr(name, data)
    return path


@pytest.fixture(scope="module")
def made(by_id: dict[str, Nodule]) -> Callable[[str], tuple[PngNodule, np.ndarray, tuple[int, int, int]]]:
    known: dict[str, tuple] = {}

    def make(nodule_id: str) -> tuple[PngNodule, np.ndarray, tuple[int, int, int]]:
        if nodule_id not in known:
            nodule = by_id[nodule_id]
            known[nodule_id] = pictures(simulate_ct([nodule], 2, margin_mm=1).volume, nodule)
        return known[nodule_id]

    return make


@pytest.fixture(scope="module")
def patient(nodules: list[Nodule]) -> Callable[[str], list[Nodule]]:
    return lambda patient_id: [nodule for nodule in nodules if nodule.patient_id == patient_id]


class TestMatch:
    def test_finds_the_stored_pixels_and_slices(self, made: Callable, patient: Callable) -> None:
        png, _, offset = made(FIRST)
        match = match_nodule(png, patient("LIDC-IDRI-0001"))
        assert match.nodule.nodule_id == FIRST
        assert tuple(match.offset) == offset
        assert match.dice == 1
        assert match.issues == []

    def test_says_what_disagrees(self, made: Callable, patient: Callable) -> None:
        png, _, offset = made(FIRST)
        masks = png.masks.copy()
        masks[1] = False
        masks[0, 4, 60:64, 60:64] ^= True
        found = match_nodule(replace(png, masks=masks), patient("LIDC-IDRI-0001"))
        assert tuple(found.offset) == offset
        assert any("reader 2 has no mask" in issue for issue in found.issues)
        assert any("reader 1's mask differs from the outline in 16 pixels" in issue for issue in found.issues)

    def test_slices_that_are_left_out(self, made: Callable, patient: Callable) -> None:
        png, _, (i, j, k) = made(FIRST)
        cut = replace(png, images=png.images[2:], masks=png.masks[:, 2:])
        found = match_nodule(cut, patient("LIDC-IDRI-0001"))
        assert tuple(found.offset) == (i, j, k + 2)
        assert any("slices that the edition leaves out" in issue for issue in found.issues)
        crop = png_crop(cut, found)
        assert crop.consensus is not None
        assert crop.consensus.any()

    def test_another_group_or_scan_is_found_by_its_masks(self, made: Callable, patient: Callable) -> None:
        png, *_ = made("LIDC-IDRI-0003-s1-n2")
        found = match_nodule(replace(png, group=3), patient("LIDC-IDRI-0003"))
        assert found.nodule.nodule_id == "LIDC-IDRI-0003-s1-n2"
        assert "is LIDC-IDRI-0003-s1-n2 by its masks" in found.issues[0]

    def test_what_fits_nothing_is_refused(self, made: Callable, patient: Callable) -> None:
        png, *_ = made(FIRST)
        with pytest.raises(DataError, match="fit no group"):
            match_nodule(png, patient("LIDC-IDRI-0005"))
        with pytest.raises(DataError, match="all its masks are empty"):
            match_nodule(replace(png, masks=np.zeros_like(png.masks)), patient("LIDC-IDRI-0001"))


class TestHu:
    @pytest.mark.parametrize(
        "nodule_id", [FIRST, "LIDC-IDRI-0003-s1-n2", "LIDC-IDRI-0010-s1-n2", "LIDC-IDRI-0015-s1-n0"]
    )
    def test_comes_back(self, made: Callable, nodule_id: str) -> None:
        png, true, _ = made(nodule_id)
        found = calibrate(png.images).to_hu(png.images)
        for low, high in ((-960, -700), (-150, 100)):
            inside = (true > low) & (true < high)
            assert abs(np.median((found - true)[inside])) < 45

    def test_pictures_of_a_stack_are_scaled_alike(self, made: Callable) -> None:
        png, true, _ = made(FIRST)
        found = calibrate(png.images).to_hu(png.images)
        each = [np.median((f - t)[(t > -150) & (t < 100)]) for f, t in zip(found, true, strict=True)]
        assert np.ptp(each) < 40

    def test_padding_is_left_out(self, made: Callable) -> None:
        _, true, _ = made(FIRST)
        outside = np.zeros(true.shape, bool)
        outside[:, :20, :40] = True
        padded = np.where(outside, -2048, true)
        low, high = padded.min(axis=(1, 2), keepdims=True), padded.max(axis=(1, 2), keepdims=True)
        grey = np.round((padded - low) / (high - low) * 255).astype(np.uint8)
        calibration = calibrate(grey)
        found = calibration.to_hu(grey)
        assert calibration.padded.all()
        assert (found[outside] == -1000).all()
        lung = ~outside & (true > -960) & (true < -700)
        assert abs(np.median((found - true)[lung])) < 45

    @pytest.mark.parametrize("images", [np.zeros((2, 16, 16), np.uint8), np.full((1, 16, 16), 255, np.uint8)])
    def test_empty_pictures_give_numbers(self, images: np.ndarray) -> None:
        assert np.isfinite(calibrate(images).to_hu(images)).all()


class TestPrepare:
    def test_zip_and_folder_give_the_same_store(self, made: Callable, tmp_path: Path) -> None:
        nodules = [made(FIRST)[0], made("LIDC-IDRI-0003-s1-n2")[0]]
        archive = write_zip(tmp_path / "slices.zip", *nodules)
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(tmp_path / "folder")
        first = prepare_png(archive, tmp_path / "a")
        second = prepare_png(tmp_path / "folder", tmp_path / "b", jobs=2)
        assert first.written == second.written == [FIRST, "LIDC-IDRI-0003-s1-n2"]
        from lidc_xai.imaging import CropStore

        store, other = CropStore(tmp_path / "a"), CropStore(tmp_path / "b")
        for nodule_id in first.written:
            np.testing.assert_array_equal(store.load(nodule_id).ct, other.load(nodule_id).ct)
        assert not store.manifest["hu_calibrated"].any()
        assert not store.manifest["simulated"].any()
        assert store.manifest["padded"].all()
        for row in store.manifest.itertuples():
            assert row.cohorts == " ".join(
                name for name in COHORTS if row.nodule_id in set(select_cohort(name).nodule_id)
            )
        assert len(store.votes) == 8
        again = prepare_png(archive, tmp_path / "a")
        assert again.written == []
        assert again.kept == first.written

    def test_crop_shows_the_nodule_under_its_outlines(self, made: Callable, patient: Callable) -> None:
        png, _, (i, *_) = made(FIRST)
        crop = png_crop(png, match_nodule(png, patient("LIDC-IDRI-0001")))
        assert crop.consensus is not None
        assert crop.reader_masks is not None
        assert len(crop.reader_masks) == 4
        assert crop.ct[crop.consensus].mean() > -200
        assert any("HU estimated" in issue for issue in crop.issues)
        assert crop.centre_mm[2] == pytest.approx(-116.25)
        assert i * 0.703125 < crop.centre_mm[0] < (i + SIZE) * 0.703125

    def test_every_fault_is_a_skipped_row(self, made: Callable, tmp_path: Path) -> None:
        good = made(FIRST)[0]
        other = made("LIDC-IDRI-0003-s1-n2")[0]
        archive = write_zip(tmp_path / "slices.zip", good)
        with zipfile.ZipFile(archive, "a") as opened:
            broken = files_of(replace(other, group=0))
            name = next(name for name in broken if "images" in name)
            broken[name] = broken[name][:40]
            missing = files_of(replace(other, group=1))
            missing.pop(next(name for name in missing if "mask-2" in name))
            twice = files_of(replace(other, group=2)) | files_of(replace(other, group=3))
            strange = files_of(replace(good, patient_id="LIDC-IDRI-0007"))
            for name, data in (broken | missing | twice | strange).items():
                opened.writestr(name, data)
        result = prepare_png(archive, tmp_path / "store")
        assert result.written == [FIRST, "LIDC-IDRI-0003-s1-n2"]
        reasons = {row.nodule_id: row.reason for row in result.skipped}
        assert "cannot be read" in reasons["LIDC-IDRI-0003-s1-n0"]
        assert "mask-2 has" in reasons["LIDC-IDRI-0003-s1-n1"]
        assert "already" in reasons["LIDC-IDRI-0003-s1-n3"]
        assert "fit no group" in reasons["LIDC-IDRI-0007-s1-n0"]
        assert not list((tmp_path / "store").rglob(".tmp-*"))

    def test_cohort_names_what_the_edition_lacks(self, made: Callable, tmp_path: Path) -> None:
        archive = write_zip(tmp_path / "slices.zip", made(FIRST)[0], made("LIDC-IDRI-0003-s1-n2")[0])
        result = prepare_png(archive, tmp_path / "store", cohort="paper854")
        assert len(result.written) + len(result.skipped) == 854
        assert FIRST in result.written
        assert all(row.reason == "not in the PNG edition" for row in result.skipped)

    def test_wrong_paths_and_options(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "text.zip").write_text("no zip")
        for source in (tmp_path / "none.zip", tmp_path / "empty", tmp_path / "text.zip"):
            with pytest.raises(UsageError, match=source.name):
                prepare_png(source, tmp_path / "store")
        with pytest.raises(UsageError, match="cohort"):
            prepare_png(write_zip(tmp_path / "z.zip", pngless()), tmp_path / "store", cohort="none")
        with pytest.raises(UsageError, match="jobs"):
            prepare_png(tmp_path / "z.zip", tmp_path / "store", jobs=0)


def pngless() -> PngNodule:
    return PngNodule("LIDC-IDRI-0001", 0, np.zeros((1, 8, 8), np.uint8), np.zeros((4, 1, 8, 8), bool))


class TestReal:
    def test_first_patient_equals_its_dicom(self, shared: Path, patient: Callable, by_id: dict[str, Nodule]) -> None:
        png = PngEdition(shared / "lidc/LIDC-IDRI-slices.zip").read("LIDC-IDRI-0001", 0)
        match = match_nodule(png, patient("LIDC-IDRI-0001"))
        assert match.dice == 1
        assert match.issues == []
        crop = png_crop(png, match)
        real = crop_nodule(read_ct(shared / "lidc/dicom/LIDC-IDRI-0001"), by_id[FIRST])
        assert crop.consensus is not None
        assert real.consensus is not None
        assert (crop.consensus & real.consensus).sum() > 0.97 * real.consensus.sum()
        shown = np.zeros(crop.ct.shape, bool)
        shown[8:24] = True  # the pictures cover the nodule's own slices
        for low, high in ((-960, -700), (-100, 200)):
            inside = shown & (real.ct > low) & (real.ct < high)
            assert abs(np.median((crop.ct - real.ct)[inside])) < 25


def test_a_replaced_edition_is_read_anew(tmp_path):
    """The index of a zip belongs to the file, not to its path."""
    import zipfile

    from lidc_xai.imaging.png.source import open_edition

    def write(patient):
        path = tmp_path / "new.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{patient}/nodule-0/images/slice-0.png", b"x")
        path.replace(tmp_path / "edition.zip")

    write("LIDC-IDRI-0001")
    first = open_edition(tmp_path / "edition.zip")
    assert open_edition(tmp_path / "edition.zip") is first
    write("LIDC-IDRI-0002")
    assert list(open_edition(tmp_path / "edition.zip").patients) == ["LIDC-IDRI-0002"]


def write_lines(path: Path, *rows: tuple) -> Path:
    lines = ["patient_id,nodule,slice,slope,intercept,rmse_hu", *(",".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def true_lines(png: PngNodule, true: np.ndarray) -> list[tuple]:
    """The lines that the pictures were made with."""
    low, high = true.min(axis=(1, 2)), true.max(axis=(1, 2))
    return [(png.patient_id, png.group, k, (high[k] - low[k]) / 255, low[k], 2.5) for k in range(len(low))]


class TestLines:
    def test_known_lines_give_the_true_hu(self, made: Callable, tmp_path: Path) -> None:
        (png, true, _), (other, *_) = made(FIRST), made("LIDC-IDRI-0003-s1-n2")
        archive = write_zip(tmp_path / "slices.zip", png, other)
        rows = true_lines(png, true)
        store_path = tmp_path / "store"
        prepare_png(archive, store_path, hu=write_lines(tmp_path / "hu.csv", *rows))
        from lidc_xai.imaging import CropStore

        store = CropStore(store_path)
        rows_by_id = store.manifest.set_index("nodule_id")
        known, guessed = rows_by_id.loc[FIRST], rows_by_id.loc["LIDC-IDRI-0003-s1-n2"]
        assert (known["hu_calibrated"], known["hu_source"], known["hu_rmse"]) == (True, "calibrated", 2.5)
        assert (guessed["hu_calibrated"], guessed["hu_source"]) == (False, "estimated")
        assert 5 < guessed["hu_rmse"] < 200
        assert not any("estimated" in issue for issue in store.load(FIRST).issues)
        calibration = hu_of_pictures(png.images, HuLines(tmp_path / "hu.csv", {(png.patient_id, 0)}).of(*rows[0][:2]))
        assert np.abs(calibration.to_hu(png.images) - true).max() <= max(row[3] for row in rows) / 2 + 1e-3
        with pytest.raises(UsageError, match="was made with rule"):
            prepare_png(archive, store_path)

    def test_a_slice_without_a_line_follows_its_neighbours(self, made: Callable, tmp_path: Path) -> None:
        png, true, _ = made(FIRST)
        rows = true_lines(png, true)
        file = HuLines(write_lines(tmp_path / "hu.csv", *rows[:3], *rows[4:]), {(png.patient_id, 0)})
        found = hu_of_pictures(png.images, file.of(png.patient_id, 0))
        assert found.calibrated
        lung = (true[3] > -960) & (true[3] < -700)
        assert abs(np.median((found.to_hu(png.images) - true)[3][lung])) < 15

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            (
                ("LIDC-IDRI-0001", 0, 0, 0, -1000, 2),
                r"line 2 \(LIDC-IDRI-0001, nodule 0, slice 0\): slope is",
            ),
            (("LIDC-IDRI-0001", 0, 0, "nan", -1000, 2), "slope is no number"),
            (("LIDC-IDRI-0001", 0, 0, 8, "", 2), "intercept is no number"),
            (("LIDC-IDRI-0001", 0, 1.5, 8, -1000, 2), "slice is no whole number"),
            (("LIDC-IDRI-9999", 0, 0, 8, -1000, 2), "no such nodule"),
            (("LIDC-IDRI-0001", 77, 0, 8, -1000, 2), "no such nodule"),
        ],
    )
    def test_a_wrong_row_is_one_line(self, row: tuple, words: str, tmp_path: Path) -> None:
        path = write_lines(tmp_path / "hu.csv", row)
        with pytest.raises(DataError, match=words) as caught:
            HuLines(path, {("LIDC-IDRI-0001", 0)})
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_rows_of_nodules_that_do_not_exist_are_counted_and_the_first_is_named(self, tmp_path: Path) -> None:
        good, stranger = ("LIDC-IDRI-0001", 0, 0, 8, -1000, 2), ("LIDC-IDRI-0001", 5, 0, 8, -1000, 2)
        path = write_lines(tmp_path / "hu.csv", good, stranger, ("LIDC-IDRI-9999", 0, 3, 8, -1000, 2))
        with pytest.raises(DataError) as caught:
            HuLines(path, {good[:2]})
        assert str(caught.value).startswith(
            f"{path}: line 3 (LIDC-IDRI-0001, nodule 5, slice 0): there is no such nodule in LIDC-IDRI, and in 1 more"
        )
        assert len(HuLines(path, None)) == 3, "nothing is compared where nothing is known"

    def test_wrong_files_are_one_line(self, made: Callable, tmp_path: Path) -> None:
        row = ("LIDC-IDRI-0001", 0, 0, 8, -1000, 2)
        with pytest.raises(DataError, match="stands there twice"):
            HuLines(write_lines(tmp_path / "twice.csv", row, row), {row[:2]})
        (tmp_path / "lacking.csv").write_text("patient_id,nodule,slice,slope\nLIDC-IDRI-0001,0,0,8\n")
        with pytest.raises(DataError, match="has no column 'intercept'"):
            HuLines(tmp_path / "lacking.csv", {row[:2]})
        with pytest.raises(DataError, match="holds no line"):
            HuLines(write_lines(tmp_path / "empty.csv"), {row[:2]})
        with pytest.raises(UsageError, match="no such file"):
            HuLines(tmp_path / "absent.csv", {row[:2]})
        with pytest.raises(DataError, match="has no column 'intercept'"):  # before the edition and the nodules are read
            prepare_png(tmp_path / "absent.zip", tmp_path / "store", hu=tmp_path / "lacking.csv")
        archive = write_zip(tmp_path / "slices.zip", made(FIRST)[0])
        elsewhere = write_lines(tmp_path / "elsewhere.csv", ("LIDC-IDRI-0003", 1, 0, 8, -1000, 2))
        with pytest.raises(DataError, match="no line of any nodule of this edition"):
            prepare_png(archive, tmp_path / "store", hu=elsewhere)
        beyond = write_lines(tmp_path / "beyond.csv", ("LIDC-IDRI-0001", 0, 99, 8, -1000, 2))
        result = prepare_png(archive, tmp_path / "other", hu=beyond)
        assert "the calibration has slice 99" in result.skipped[0].reason


class TestLearned:
    def test_trees_are_summed(self) -> None:
        stump = [[1, 0.5, 1, 2, 0], [-1, 0, -1, -1, 10], [-1, 0, -1, -1, 20]]
        deep = [[0, 0.0, 1, 2, 0], [-1, 0, -1, -1, 1], [1, 0.5, 3, 4, 0], [-1, 0, -1, -1, 2], [-1, 0, -1, -1, 3]]
        trees = BoostedTrees.from_json({"baseline": 0.5, "trees": [stump, deep]})
        x = np.array([[-1.0, 0.0], [1.0, 0.5], [1.0, 0.75]])
        np.testing.assert_allclose(trees.predict(x), [0.5 + 10 + 1, 0.5 + 10 + 2, 0.5 + 20 + 3])

    def test_the_table_fits_the_features(self, made: Callable) -> None:
        png, *_ = made(FIRST)
        estimate = calibrate(png.images)
        features = picture_features(png.images, estimate, [-1024.0, -1024.0])
        used = max(int(tree[:, 0].max()) for side in (trees().lung, trees().soft) for tree in side.nodes)
        assert used < features.shape[1]
        assert np.isfinite(features).all()
        assert not np.allclose(features, picture_features(png.images, estimate, []))
        assert (corrected(png.images, estimate, []).slope > 0).all()

    @pytest.mark.parametrize("images", [np.zeros((2, 16, 16), np.uint8), np.full((1, 16, 16), 255, np.uint8)])
    def test_empty_pictures_give_numbers(self, images: np.ndarray) -> None:
        assert np.isfinite(hu_of_pictures(images, {}).to_hu(images)).all()
