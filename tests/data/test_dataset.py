"""The dataset: the same pixels as the stored crop, statistics of the training part, and honest random changes."""

import numpy as np
import pandas as pd
import pytest
import torch
from monai.data import CacheDataset
from torch.utils.data import DataLoader

from lidc_xai.data import Augmentation, NoduleDataset, fold_datasets, make_splits, target_scaling, window_statistics
from lidc_xai.data.dataset import zoomed_targets
from lidc_xai.data.transforms import MovePlanes
from lidc_xai.errors import DataError, UsageError
from lidc_xai.imaging import extract_plane
from lidc_xai.models.preprocess import Preprocess

NATIVE = Preprocess(size=16, mean=-500.0, std=200.0)
STILL = Augmentation(slices=5, rotate90=False, flip=False, shift_pixels=0, shift_hu=0)
OUTPUTS = ("malignancy", "margin", "diameter")


@pytest.fixture(scope="module")
def scaling(store) -> dict[str, tuple[float, float]]:
    return target_scaling(store.manifest, store.nodule_ids, OUTPUTS)


def test_evaluation_shows_the_middle_planes_of_the_stored_crop(store, scaling):
    data = NoduleDataset(store, store.nodule_ids, NATIVE, OUTPUTS, scaling=scaling)
    assert isinstance(data, CacheDataset)
    assert len(data) == len(store)
    for index in (0, 7, len(store) - 1):
        item = data[index]
        assert set(item) == {"image", "targets", "nodule_id"}
        assert item["nodule_id"] == store.nodule_ids[index]
        assert type(item["image"]) is torch.Tensor
        assert item["image"].shape == (3, 3, 16, 16)
        crop = store.load(item["nodule_id"])
        for row, view in enumerate(("axial", "coronal", "sagittal")):
            plane = np.clip(extract_plane(crop.ct, crop.affine, view).image, -1000, 400)
            for channel in range(3):
                shown = item["image"][row, channel] * NATIVE.std + NATIVE.mean
                np.testing.assert_allclose(shown.numpy(), plane, atol=1e-3)


def test_other_sizes_go_through_the_models_own_preprocessing(store, scaling):
    larger = NATIVE.with_size(40)
    data = NoduleDataset(store, store.nodule_ids[:2], larger, OUTPUTS, scaling=scaling)
    crop = store.load(store.nodule_ids[1])
    expected = larger.apply(torch.from_numpy(crop.ct[8].copy()))
    torch.testing.assert_close(data[1]["image"][0], expected)
    assert data[1]["image"].shape == (3, 3, 40, 40)


def test_training_shows_one_of_the_middle_five_planes_of_one_view(store):
    data = NoduleDataset(store, store.nodule_ids, NATIVE, OUTPUTS, train=True, augment=STILL)
    crop = store.load(store.nodule_ids[3])
    allowed = {
        (view, index): extract_plane(crop.ct, crop.affine, view, index).image
        for view in ("axial", "coronal", "sagittal")
        for index in range(6, 11)
    }
    seen = set()
    torch.manual_seed(0)
    for _ in range(150):
        image = data[3]["image"]
        assert image.shape == (3, 16, 16)
        hu = (image[0] * NATIVE.std + NATIVE.mean).numpy()
        hits = [key for key, plane in allowed.items() if np.allclose(hu, np.clip(plane, -1000, 400), atol=1e-3)]
        assert len(hits) == 1
        seen.update(hits)
    assert seen == set(allowed)


def test_quarter_turns_and_mirroring_only_move_pixels(store):
    augment = Augmentation(slices=1, shift_pixels=0, shift_hu=0)
    data = NoduleDataset(store, store.nodule_ids, NATIVE, OUTPUTS, train=True, augment=augment, views=["axial"])
    plane = store.load(store.nodule_ids[0]).ct[8]
    turned = [np.rot90(p, k) for p in (plane, plane[::-1]) for k in range(4)]
    seen = set()
    torch.manual_seed(1)
    for _ in range(120):
        hu = (data[0]["image"][0] * NATIVE.std + NATIVE.mean).numpy()
        hits = [n for n, candidate in enumerate(turned) if np.allclose(hu, candidate, atol=1e-3)]
        assert len(hits) == 1
        seen.update(hits)
    assert seen == set(range(8))


def test_the_same_seed_repeats_and_the_cache_stays_as_it_was(store):
    data = NoduleDataset(store, store.nodule_ids[:4], NATIVE, OUTPUTS, train=True)
    before = [item["planes"].clone() for item in data._cache]

    def epoch() -> torch.Tensor:
        return torch.stack([data[index]["image"] for index in range(4)])

    torch.manual_seed(5)
    first, second = epoch(), epoch()
    torch.manual_seed(5)
    torch.testing.assert_close(epoch(), first, rtol=0, atol=0)
    assert not torch.equal(first, second)
    for kept, item in zip(before, data._cache, strict=True):
        assert torch.equal(kept, item["planes"])


def test_crops_are_read_once(store, monkeypatch):
    reads = []
    load = type(store).load
    monkeypatch.setattr(type(store), "load", lambda self, key: reads.append(key) or load(self, key))
    data = NoduleDataset(store, store.nodule_ids[:6], NATIVE, OUTPUTS, train=True)
    for _ in range(3):
        for index in range(6):
            data[index]
    assert sorted(reads) == sorted(store.nodule_ids[:6])


def test_workers_of_a_loader_differ_and_repeat(store):
    same = [store.nodule_ids[0]] * 8
    data = NoduleDataset(store, same, NATIVE, OUTPUTS, train=True)

    def images() -> torch.Tensor:
        loader = DataLoader(data, batch_size=4, num_workers=2, generator=torch.Generator().manual_seed(3))
        return torch.cat([batch["image"] for batch in loader])

    first = images()
    assert first.shape == (8, 3, 16, 16)
    assert len({image.numpy().tobytes() for image in first}) == 8
    torch.testing.assert_close(images(), first, rtol=0, atol=0)


def test_targets_are_labels_and_z_scores_of_the_training_part(store):
    train_ids, test_ids = store.nodule_ids[:14], store.nodule_ids[14:]
    train = NoduleDataset(store, train_ids, NATIVE, OUTPUTS, train=True)
    rows = store.manifest.set_index("nodule_id")
    z = np.stack([item["targets"].numpy() for item in train])
    np.testing.assert_allclose(np.nanmean(z[:, 1:], axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(np.nanstd(z[:, 1:], axis=0), 1, atol=1e-6)
    mean, deviation = train.scaling["diameter"]
    assert mean == pytest.approx(rows.diameter[train_ids].mean())
    test = NoduleDataset(store, test_ids, NATIVE, OUTPUTS, scaling=train.scaling)
    for item in test:
        row = rows.loc[item["nodule_id"]]
        assert item["targets"][2] == pytest.approx((row.diameter - mean) / deviation, abs=1e-5)
        if pd.notna(row.label):
            assert item["targets"][0] == row.label
        else:
            assert torch.isnan(item["targets"][0])
    assert sum(bool(torch.isnan(item["targets"][0])) for item in [*train, *test]) == 2


def test_absent_ratings_stay_absent(write_store, tmp_path):
    store = write_store(tmp_path / "s", patients=2, margin=float("nan"))
    data = NoduleDataset(store, store.nodule_ids, NATIVE, ["margin"], scaling={"margin": (3.0, 1.0)})
    assert all(torch.isnan(item["targets"]).all() for item in data)
    with pytest.raises(DataError, match="rating of margin"):
        NoduleDataset(store, store.nodule_ids, NATIVE, ["margin"], train=True)


def test_a_zoomed_nodule_is_larger_and_so_is_its_diameter():
    y, x = np.indices((65, 65)) - 32
    disc = torch.from_numpy((np.hypot(y, x) < 14).astype(np.float32))
    augment = STILL.model_copy(update={"scale": 0.4})
    numbers = torch.stack([augment.draw(f"n{place}", 0, 0, 1).numbers() for place in range(6)])
    changed = MovePlanes(0.0)({"image": disc.expand(6, 1, 65, 65), "numbers": numbers})["image"]
    sizes = ((changed > 0.5).sum((1, 2, 3)) / (disc > 0.5).sum()).sqrt()
    scaling = {"diameter": (10.0, 2.0)}
    targets = zoomed_targets(torch.ones(6, 2), numbers, ("malignancy", "diameter"), scaling)  # 12 mm
    assert (targets[:, 0] == 1).all()
    np.testing.assert_allclose(sizes, (targets[:, 1] * 2 + 10) / 12, rtol=0.06)
    assert sizes.max() > 1.15
    assert sizes.min() < 0.9


def test_a_shift_moves_the_nodule_by_no_more_than_was_asked():
    image = torch.zeros(20, 1, 21, 21)
    image[:, 0, 10, 10] = 1.0
    augment = STILL.model_copy(update={"shift_pixels": 2.0})
    numbers = torch.stack([augment.draw(f"n{place}", 0, 0, 1).numbers() for place in range(20)])
    moved = MovePlanes(0.0)({"image": image, "numbers": numbers})["image"][:, 0]
    rows = (moved.sum(2) * torch.arange(21)).sum(1) / moved.sum((1, 2))
    places = (rows - 10).abs()
    assert 1.0 < float(places.max()) <= 2.0 + 1e-4


def test_brightness_changes_within_its_limit(store):
    augment = Augmentation(slices=1, rotate90=False, flip=False, shift_pixels=0, shift_hu=30, scale_hu=0)
    data = NoduleDataset(store, store.nodule_ids[:1], NATIVE, OUTPUTS, train=True, augment=augment, views=["axial"])
    plane = torch.from_numpy(store.load(store.nodule_ids[0]).ct[8].copy())
    offsets = torch.stack([(data[0]["image"][0] * NATIVE.std + NATIVE.mean - plane).mean() for _ in range(30)])
    assert offsets.abs().max() <= 30.01
    assert offsets.std() > 8


def test_window_statistics_are_those_of_the_clamped_voxels(store):
    ids = store.nodule_ids[:5]
    voxels = np.clip(np.stack([store.load(key).ct for key in ids]).astype(np.float64), -850, -600)
    mean, deviation = window_statistics(store, ids, (-850, -600))
    assert mean == pytest.approx(voxels.mean(), abs=1e-6)
    assert deviation == pytest.approx(voxels.std(), abs=1e-6)
    with pytest.raises(DataError, match="choose another window"):
        window_statistics(store, ids, (2000, 3000))
    with pytest.raises(UsageError, match="training part is empty"):
        window_statistics(store, [])


def test_a_fold_takes_every_statistic_from_its_training_part(store):
    splits = make_splits(store.manifest, n_folds=3, validation_share=0.3)
    train, validation, test, preprocess = fold_datasets(store, splits, 1, OUTPUTS, size=16)
    ids = splits.nodules(store.manifest, 1)
    assert (train.nodule_ids, validation.nodule_ids, test.nodule_ids) == (ids.train, ids.validation, ids.test)
    assert (preprocess.mean, preprocess.std) == window_statistics(store, ids.train)
    assert window_statistics(store, ids.test)[0] != preprocess.mean
    assert test.scaling == validation.scaling == target_scaling(store.manifest, ids.train, OUTPUTS)
    assert train[0]["image"].shape == (3, 16, 16)
    assert test[0]["image"].shape == (3, 3, 16, 16)


def test_misuse_is_one_clear_line(store, scaling):
    ids = store.nodule_ids[:3]
    with pytest.raises(UsageError, match="at least one nodule"):
        NoduleDataset(store, [], NATIVE, OUTPUTS, scaling=scaling)
    with pytest.raises(UsageError, match="no nodule 'nobody'"):
        NoduleDataset(store, [*ids, "nobody"], NATIVE, OUTPUTS, scaling=scaling)
    with pytest.raises(UsageError, match="output 'colour' is not known"):
        NoduleDataset(store, ids, NATIVE, ["colour"], scaling=scaling)
    with pytest.raises(UsageError, match="needs the training part's scaling"):
        NoduleDataset(store, ids, NATIVE, OUTPUTS)
    with pytest.raises(UsageError, match="no entry for 'texture'"):
        NoduleDataset(store, ids, NATIVE, ["texture"], scaling=scaling)
    with pytest.raises(UsageError, match="augment is for training"):
        NoduleDataset(store, ids, NATIVE, OUTPUTS, scaling=scaling, augment=STILL)
    for wrong in ({"slices": 4}, {"slices": 0}, {"scale": 0.5}, {"shift_hu": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            Augmentation.of(**wrong)
    with pytest.raises(DataError, match="planes need a cube of at least 17"):
        NoduleDataset(store, ids, NATIVE, ["malignancy"], train=True, augment=Augmentation(slices=17))
