"""check: one picture and words, also for what cannot be cut."""

import numpy as np
import pytest
from PIL import Image

from lidc_xai.errors import UsageError
from lidc_xai.imaging import check_ct, read_ct

BOX = np.array([0x4D, 0xD2, 0xFF])


def colours(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def has(picture, colour):
    return bool((np.abs(picture - colour).sum(axis=-1) < 30).any())


def test_a_point_in_the_wrong_system_is_seen(write_series, tmp_path):
    write_series(origin=(30.0, 40.0, -14.0), positions=np.arange(20) * 2.0, shape=(60, 60))
    out = tmp_path / "check.png"
    right = check_ct(tmp_path / "ct", point=(-45, -55, 0), system="ras", out=out)
    assert right.problems == []
    assert any("centre x 45.0, y 55.0, z 0.0 mm (LPS)" in line for line in right.lines)
    assert has(colours(out), BOX)
    wrong = check_ct(tmp_path / "ct", point=(-45, -55, 0), out=out)
    assert "as RAS mm it would lie inside" in wrong.problems[0]
    assert not has(colours(out), BOX)
    with pytest.raises(UsageError, match="choose one of lps, ras, voxel"):
        check_ct(tmp_path / "ct", point=(1, 2, 3), system="world", out=out)
    with pytest.raises(UsageError, match="three numbers"):
        check_ct(tmp_path / "ct", point=(1, 2), out=out)


def test_without_a_target_the_middle_is_drawn(write_series, tmp_path):
    write_series(positions=np.delete(np.arange(20) * 2.5, 15), shape=(60, 60))
    result = check_ct(tmp_path / "ct", out=tmp_path / "new" / "check.png", size_mm=8)
    assert any("gap of 5.00 mm" in line for line in result.lines)
    assert any(line.startswith("middle of the scan: centre") for line in result.lines)
    assert colours(result.picture).shape[2] == 3


def test_points_and_masks(write_series, tmp_path):
    import SimpleITK as sitk

    from lidc_xai.imaging.ct.formats.volume_file import to_image

    write_series(positions=np.arange(20) * 2.0, shape=(60, 60))
    ct = read_ct(tmp_path / "ct")
    (tmp_path / "p.csv").write_text("nodule_id,i,j,k\nfirst,30,30,10\nsecond,30,x,10\n")
    mask = np.zeros(ct.array.shape, np.uint8)
    mask[8:12, 25:35, 25:35] = 1
    sitk.WriteImage(to_image(mask, ct.affine), str(tmp_path / "mask.nii.gz"))
    out = tmp_path / "check.png"
    result = check_ct(tmp_path / "ct", points=tmp_path / "p.csv", mask=tmp_path / "mask.nii.gz", out=out, size_mm=12)
    text = "\n".join(result.lines)
    assert "first: centre" in text
    assert "second: p.csv: row 2" in text
    assert "label1: centre" in text
    assert "1 outline(s)" in text
    assert len(result.problems) == 1
    chosen = check_ct(tmp_path / "ct", mask=tmp_path / "mask.nii.gz", roi=["LABEL*"], out=out, size_mm=12)
    assert chosen.problems == []
    with pytest.raises(UsageError, match="--roi tumour: no structure is called so; there are: label1"):
        check_ct(tmp_path / "ct", mask=tmp_path / "mask.nii.gz", roi=["tumour"], out=out)


def test_real_series_with_their_nodules(shared, tmp_path):
    dicom, out = shared / "lidc" / "dicom", tmp_path / "check.png"
    result = check_ct(dicom / "LIDC-IDRI-0001", out=out)
    assert any("LIDC-IDRI-0001-s1-n0: centre x 56.9, y 84.9, z -116.2" in line for line in result.lines)
    assert has(colours(out), BOX)
    cut_off = check_ct(dicom, nodule="LIDC-IDRI-0002-s1-n0", out=out)
    assert "nodule is cut off" in cut_off.problems[0]
