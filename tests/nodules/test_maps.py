"""Maps of nodules keep their place: cells in mm, files that read back, and no mixing of models."""

import numpy as np
import pytest

from lidc_xai.errors import DataError, UsageError
from lidc_xai.explain import explain
from lidc_xai.imaging import NoduleCrop, StoreWriter
from lidc_xai.models import build_model
from lidc_xai.nodules.maps import (
    explain_nodules,
    explain_store,
    load_maps,
    nodule_images,
)


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
