"""Maps of nodules keep their place: cells in mm, files that read back, and no mixing of models."""

from dataclasses import replace

import numpy as np
import pytest

from lidc_xai.errors import DataError, UsageError
from lidc_xai.explain import explain
from lidc_xai.imaging import NoduleCrop, StoreWriter
from lidc_xai.models import build_model
from lidc_xai.models.preprocess import Preprocess
from lidc_xai.nodules.maps import (
    explain_nodules,
    explain_store,
    load_maps,
    nodule_images,
)
from lidc_xai.reporting.volume_files import map_on_grid


@pytest.fixture(scope="module")
def crop():
    affine = np.diag([0.5, 0.75, 1.25, 1.0])
    affine[:3, 3] = [-40, 25, -110]
    ct = np.random.default_rng(0).normal(-700, 200, (16, 24, 32)).astype(np.float32)
    return NoduleCrop(ct, affine, nodule_id="LIDC-IDRI-0001-s1-n0", series_uid="1.2.3")


@pytest.fixture(scope="module")
def model():
    return build_model("vit_small64_p8", outputs=["malignancy", "margin"], seed=0)


def test_maps_are_those_of_explain_on_the_middle_planes(crop, model):
    (found,) = explain_nodules(model, [crop], ["cdam", "attention"])
    images = nodule_images(model, crop)
    assert images.shape == (3, 3, 64, 64)
    expected = explain(model, images, method="cdam")
    assert np.allclose(found["cdam"].relevance, expected.relevance.numpy(), atol=1e-7)
    assert found["cdam"].indices == (8, 12, 16)
    assert found["cdam"].token_mm == pytest.approx((24 * 0.75 / 8, 32 * 0.5 / 8))


def test_a_map_survives_its_file(crop, model, tmp_path):
    (found,) = explain_nodules(model, [crop], ["cdam"])
    found["cdam"].save(tmp_path)
    again = load_maps(tmp_path, crop.nodule_id, "cdam")
    assert np.array_equal(again.relevance, found["cdam"].relevance)
    assert again.output_names == ("malignancy", "margin")
    assert again.options == found["cdam"].options
    with pytest.raises(DataError, match="no such map"):
        load_maps(tmp_path, crop.nodule_id, "attention")
    (tmp_path / crop.nodule_id / "random.npz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="is not a map"):
        load_maps(tmp_path, crop.nodule_id, "random")


def test_a_folder_holds_maps_of_one_model_and_one_set_of_options(crop, model, tmp_path):
    crop = NoduleCrop(crop.ct[:, :16, :16], np.eye(4), nodule_id=crop.nodule_id, series_uid="1.2.3")
    writer = StoreWriter(tmp_path / "store", size_mm=16, spacing_mm=1, rule="test")
    writer.write(crop, {"patient_id": "LIDC-IDRI-0001"}, [])
    store = writer.finish()
    explain_store(model, store, tmp_path / "x", methods=["smooth_cdam"], samples=3)
    file = tmp_path / "x" / "maps" / crop.nodule_id / "smooth_cdam.npz"
    before = file.stat().st_mtime_ns
    explain_store(model, store, tmp_path / "x", methods=["smooth_cdam"], samples=3)
    assert file.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="another model, store or options"):
        explain_store(model, store, tmp_path / "x", methods=["smooth_cdam"], samples=4)
    other = build_model("vit_small64_p8", outputs=["malignancy", "margin"], seed=1)
    with pytest.raises(UsageError, match="another model, store or options"):
        explain_store(other, store, tmp_path / "x", methods=["smooth_cdam"], samples=3)


@pytest.mark.parametrize("channels", ["repeat", "neighbours"])
def test_maps_of_every_slice_are_those_of_each_plane(crop, channels):
    preprocess = Preprocess(channels=channels, size=64, turns=8)
    model = build_model("vit_small64_p8", outputs=["malignancy", "margin"], seed=0, preprocess=preprocess)
    part = NoduleCrop(crop.ct[:, :16, :16].copy(), np.eye(4), nodule_id="n", padded=True)
    part.ct[:4] = -1000  # the scan begins at slice 4
    (found,) = explain_nodules(model, [part], "cdam", ("axial",), every_slice=True)
    beside = channels == "neighbours"
    assert found["cdam"].views == ("axial",) * (12 - beside)
    assert found["cdam"].indices == tuple(range(4, 16 - beside))
    for place, index in enumerate(found["cdam"].indices):
        shifted = NoduleCrop(np.roll(part.ct, 8 - index, axis=0), np.eye(4), nodule_id="n")
        (alone,) = explain_nodules(model, [shifted], "cdam", ("axial",))
        assert np.allclose(found["cdam"].relevance[place], alone["cdam"].relevance[0], atol=1e-6)
        assert np.allclose(found["cdam"].values[place], alone["cdam"].values[0], atol=1e-5)
    with pytest.raises(UsageError, match="of one slice each"):
        explain_nodules(model, [part], "cdam", every_slice=True, slices=3)


def test_maps_of_every_slice_fill_the_crop(crop, model):
    part = NoduleCrop(crop.ct[:, :16, :16].copy(), np.eye(4), nodule_id="n")
    (found,) = explain_nodules(model, [part], "cdam", ("axial",), every_slice=True)
    points = np.stack(np.meshgrid(*(np.arange(16.0),) * 3, indexing="ij"), axis=-1)[..., ::-1]
    values, count = map_on_grid(found["cdam"], "margin", part.ct.shape, part.affine, points, np.eye(3))
    assert (count == 1).all()
    assert np.array_equal(values[5, ::2, ::2], found["cdam"].relevance[5, 1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"views": ("oblique",)}, "no planes"),
        ({"indices": (1, 2)}, "3 views have 2 indices"),
        ({"indices": (1, 2, -1)}, "3 views have 3 indices, or some below 0"),
        ({"output_names": (1, 2)}, "outputs have no names"),
        ({"token_mm": (0.0, 1.0)}, "no size of a cell"),
        ({"relevance": np.zeros((3, 2, 8), np.float32)}, "relevance is float32 of shape"),
        ({"relevance": np.full((3, 2, 8, 8), np.nan, np.float32)}, "no numbers"),
        ({"values": np.zeros((3, 1), np.float32)}, "values is float32 of shape"),
        ({"method": "gradcam"}, "by 'gradcam'"),
    ],
)
def test_a_map_that_does_not_hold_together_is_refused(crop, model, tmp_path, change, words):
    (found,) = explain_nodules(model, [crop], "cdam")
    path = replace(found["cdam"], **change).save(tmp_path)
    path.rename(path.with_name("cdam.npz"))
    with pytest.raises(DataError, match=words):
        load_maps(tmp_path, crop.nodule_id, "cdam")
