"""The fault table: every way in which a series can be damaged, and what the user sees.

Each row damages a small series in one way and says whether it is met (read; the words are in ``.issues``) or refused
(one line with the words). Where it is met, every voxel still has the HU that belongs to its place. The table in
docs/imaging.md has the same rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from ct_damage import encodings, files, frames, values

from lidc_xai.errors import DataError, LidcXaiError, UsageError
from lidc_xai.imaging import crop_nodule, read_ct

DOCS = Path(__file__).resolve().parents[2] / "docs" / "imaging.md"


@dataclass(frozen=True)
class Fault:
    """``make(write, folder, tools)`` writes the damaged series; ``refused`` is the error's class, None where met."""

    name: str
    make: Callable
    words: str = ""
    refused: type[LidcXaiError] | None = None
    tolerance: float = 0.03
    slices: int = 12


LEFT = r"12 slice\(s\) of another {} at the same places left out"

FAULTS = [
    Fault("no DICOM file", files.no_files, "holds no DICOM file", UsageError),
    Fault("any names, nested folders", files.nested_names),
    Fault("files without preamble and meta header", files.no_preamble),
    Fault("CR or DX beside the CT", files.other_modality_beside),
    Fault("no CT at all", files.only_cr, r"has no CT series \(found 1 CR\)", DataError),
    Fault("several CT series in one folder", files.two_series, "has 2 CT series; name one", UsageError),
    Fault("files copied twice", files.copies, r"3 file\(s\) present twice"),
    Fault("two slices at one place, equal", files.same_place, r"2 slice\(s\) at the place of another \(all equal\)"),
    Fault(
        "two slices at one place, different", files.same_place_other_content,
        r"2 slice\(s\) at the place of another \(2 with other content\), lowest instance number kept",
    ),
    Fault("missing slice", files.missing, r"gap of 5\.00 mm between -1\.50 and 3\.50 mm.*\(1 slice\(s\) missing\)"),
    Fault("jittered spacing", files.jitter, "slice spacing varies from 2.41. to 2.57. mm"),
    Fault("pixels cut short", files.truncated_pixels, r"slice005\.dcm: is truncated \(760 of 960 bytes .*\): left out"),
    Fault("file cut inside its header", files.truncated_header, r"slice005\.dcm: .*: left out"),
    Fault("empty file", files.empty_file, r"slice005\.dcm: .*: left out"),
    Fault("file of random bytes", files.garbage, r"slice005\.dcm: is not DICOM or its head is damaged: left out"),
    Fault("damaged compressed pixels", files.damaged_stream, r"slice005\.dcm.*: left out", tolerance=0.51),
    Fault("big-endian pixels", values.big_endian),
    Fault("rescale differs from slice to slice", values.scale_per_slice),
    Fault(
        "no rescale slope or intercept", values.no_rescale,
        "12 .* without rescale slope or intercept", tolerance=0.51,
    ),
    Fault(
        "padding value, written unsigned", values.unsigned_padding,
        "padding value in 15.0% of pixels", tolerance=0.51,
    ),
    Fault("padding not declared", values.undeclared_padding, "15.0% of pixels below -1024 HU", tolerance=0.51),
    Fault(
        "slices of different size", values.sizes,
        r"differ in size \(20x22, 20x24\); they are not one volume", DataError,
    ),
    Fault(
        "a slice of another pixel spacing", values.spacings,
        r"1 slice\(s\) of another pixel spacing \(0.7 x 0.65 mm; most: 0.7 x 0.6 mm\) left out\n.*1 slice\(s\) missing",
    ),
    Fault("a slice of another orientation", values.turned, r"1 slice\(s\) of another orientation .* left out"),
    Fault("localizer in the series", files.localizer, r"1 localizer image\(s\) left out"),
    Fault(
        "slice without position", values.no_position,
        r"slice005\.dcm: ImagePositionPatient has 0 of 3 numbers: left out",
    ),
    Fault("position that is no number", values.bad_number, r"slice005\.dcm: .*: left out"),
    Fault("orientation that is no frame", values.bad_orientation, "is not two unit vectors", DataError),
    Fault("slice shifted sideways", values.sideways, "shifted sideways against each other by up to 2", DataError),
    Fault("one slice", values.one_slice, r"has 1 usable slice\(s\)", DataError),
    Fault("colour images", values.colour, "is a colour image", DataError),
    Fault(
        "two acquisitions at the same places", frames.two_acquisitions,
        LEFT.format("acquisition number") + r" \(kept: 1",
    ),
    Fault("two acquisitions half a step apart", frames.two_acquisitions_between, LEFT.format("acquisition number")),
    Fault("two points in time", frames.two_times, LEFT.format("temporal position")),
    Fault("a second acquisition that is numbered on", frames.numbered_on, LEFT.format("run of instance numbers")),
    Fault("two acquisitions that no field tells apart", frames.not_told_apart, "12 slices lie at the place", DataError),
    Fault("the same, half a step apart", frames.not_told_apart_between, "share their InstanceNumber", DataError),
    Fault("an acquisition number for every few slices", frames.rising_acquisitions),
    Fault("times of slices in no order", frames.times_in_no_order),
    Fault("a part of the scan repeated", frames.two_of_two_sizes, r"6 slice\(s\) of another acq.*kept: 2; left: 1"),
    Fault("enhanced CT, two points in time", frames.enhanced_times, r"6 slice\(s\) of another temporal position"),
    Fault("derived images between the slices", files.derived_beside, LEFT.format("image type")),
    Fault("dose sheet in the series", files.sheet, r"1 sheet\(s\) or screen capture\(s\) left out"),
    Fault("screen capture in the series", files.capture, r"1 sheet\(s\) or screen capture\(s\) left out"),
    Fault("colour sheet in the series", files.colour_sheet, r"sheet0\.dcm: is a colour image, not CT values: left out"),
    Fault(
        "a slice of another size", files.odd_one_out,
        r"1 slice\(s\) of another size \(20x22; most: 20x24\) left out",
    ),
    Fault("MONOCHROME1", values.shown_inverted, r"12 slice\(s\) MONOCHROME1 \(to be shown inverted\)"),
    Fault("another quantity than HU", values.not_hounsfield, "RescaleType is Z_EFF, not HU", DataError),
    Fault(
        "one slice of another quantity", values.one_not_hounsfield,
        r"slice005\.dcm: RescaleType is MGML, not HU.*: left",
    ),
    Fault(
        "RescaleType unspecified", values.unspecified,
        r"12 slice\(s\) with RescaleType US \(unspecified\): taken as HU",
    ),
    Fault(
        "a tissue's value declared as not measured", values.tissue_as_padding,
        "declared padding value .* HU kept in ",
    ),
    Fault("a slice 10 m away", values.far_slice, r"1 slice\(s\) more than 100 mm away from the others left out"),
    Fault("overlay in the unused bits", values.stored_bits, tolerance=0.51),
    Fault("deflated files", encodings.deflated),
    Fault(
        "compressed pixels called uncompressed", encodings.compressed_called_plain,
        r"says Explicit VR Little Endian, but the pixels are compressed: left out", tolerance=0.51,
    ),
    Fault(
        "uncompressed pixels called compressed", encodings.plain_called_compressed,
        r"says JPEG Lossless.*, but the pixels are not compressed: left out",
    ),
    Fault(
        "compressed in another way than it says", encodings.jpeg_called_rle,
        "TransferSyntaxUID says RLE Lossless, but the pixels are JPEG 2000: left out", tolerance=0.51,
    ),
    Fault(
        "little endian called big endian", encodings.called_big_endian,
        "says Explicit VR Big Endian, but the file is",
    ),
    Fault(
        "unknown transfer syntax", encodings.unknown_syntax,
        "TransferSyntaxUID '1.2.840.113619.5.2' is no transfer syntax",
    ),
    Fault(
        "compressed pixels of another size", encodings.compressed_size,
        r"compressed pixels are 20 x 60000, its header says 20 x 24: left out", tolerance=0.51,
    ),
    Fault("a value representation flipped", encodings.flipped_vr, r"slice005\.dcm: header cannot be read .*: left out"),
    Fault("instance numbers that are none", encodings.instance_number_of_words),
    Fault(
        "pixel representation that is no number", encodings.sign_that_is_none,
        r"slice005\.dcm: header cannot be read",
    ),
    Fault("a length of 4 GB", encodings.long_value, r"slice005\.dcm: .*: left out"),
    Fault(
        "bytes put in between the pixels", encodings.bytes_put_in,
        r"slice005\.dcm: is damaged \(what follows its pixels",
    ),
    Fault("141 other files beside", files.others_beside, r"141 file\(s\) that are not DICOM passed over"),
    Fault("folders linked, in a circle too", files.linked),
    Fault("only what a slice needs", files.bare),
    Fault("spacing in another unit", values.metres, r"voxel spacing 600 x 700 x 2\.5 mm is not plausible", DataError),
    Fault(
        "grey levels instead of HU", values.grey_levels,
        "nothing below -300, so these may not be HU", tolerance=np.inf,
    ),
    Fault("enhanced CT, frames shuffled, own rescale", frames.enhanced_file),
    Fault("enhanced CT, one rescale", frames.enhanced_one_scale),
    Fault("enhanced CT, compressed", frames.enhanced_packed),
    Fault("several frames without positions", frames.frames_without_place, "no positions for them", DataError),
    Fault("fewer frame descriptions than frames", frames.frame_count, "NumberOfFrames is 12, but 11 are", DataError),
]  # fmt: skip


@dataclass(frozen=True)
class Tools:
    writer: type
    recompress: Callable
    slanted: Callable


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(fault, write_series, series_writer, recompress, slanted, voxel_centres, tmp_path, recwarn):
    folder = tmp_path / "ct"
    fault.make(write_series, folder, Tools(series_writer, recompress, slanted))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    if fault.refused is not None:
        with pytest.raises(fault.refused, match=fault.words) as error:
            read_ct(folder)
        assert "\n" not in str(error.value)
    else:
        ct = read_ct(folder)
        issues = "\n".join(ct.issues)
        if fault.words:
            assert_words(fault.words, issues)
        else:
            assert ct.issues == []
        right = slanted(voxel_centres(ct.affine, ct.array.shape))
        measured = ct.array > -1000 if "padding" in fault.name else np.ones(ct.array.shape, bool)
        assert np.abs(ct.array - right)[measured].max() <= fault.tolerance
        if "padding" in fault.name:
            assert ct.array[:, :3].max() <= -1000
            assert ct.array.min() >= -1024
    assert sorted(path.name for path in tmp_path.rglob("*")) == before, "reading leaves nothing behind"
    assert not [str(warning.message)[:80] for warning in recwarn], "pydicom's remarks hold what lies in the file"


def assert_words(pattern, text):
    import re

    assert re.search(pattern, text), f"{pattern!r} is not in {text!r}"


def test_a_gap_refuses_only_the_crops_that_it_lies_in(write_series, tmp_path):
    write_series(positions=np.arange(30) * 2.5)[20].unlink()
    ct = read_ct(tmp_path / "ct")
    assert ct.gaps == [(pytest.approx(33.5), pytest.approx(38.5))]
    assert crop_nodule(ct, (0, 0, 10), size_mm=8).ct.shape == (8, 8, 8)
    with pytest.raises(
        DataError, match=r"slices are missing between 33\.50 and 38\.50 mm along the scan, inside the box"
    ):
        crop_nodule(ct, (0, 0, 32), size_mm=8)


def test_a_gap_names_the_file_that_was_left_out(write_series, tmp_path):
    path = write_series(positions=np.arange(30) * 2.5)[20]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"complete the series; slice020\.dcm: is truncated .*: left out"):
        crop_nodule(read_ct(tmp_path / "ct"), (0, 0, 32), size_mm=8)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(b"not an image"), "cannot be read as an image"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be read as an image"),
        (lambda path: sitk.WriteImage(sitk.Image([4, 4, 4, 3], sitk.sitkInt16), str(path)), "not one 3D volume"),
        (lambda path: sitk.WriteImage(sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3), str(path)), "not one 3D volume"),
        (lambda path: sitk.WriteImage(sitk.Image([4, 4, 1], sitk.sitkInt16), str(path)), "at least 2 slices"),
    ],
    ids=["text", "truncated", "four axes", "colour", "one slice"],
)
def test_damaged_volume_files(damage, words, tmp_path):
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).integers(-1000, 400, (9, 9, 9))), str(path))
    damage(path)
    with pytest.raises(DataError, match=words):
        read_ct(path)


def test_numbers_that_are_none_become_air(tmp_path):
    values = np.full((4, 5, 6), -700, np.float32)
    values[1, 2, 3] = np.nan
    sitk.WriteImage(sitk.GetImageFromArray(values), str(tmp_path / "ct.nii.gz"))
    ct = read_ct(tmp_path / "ct.nii.gz")
    assert ct.array[1, 2, 3] == -1000
    assert "1 voxels without a number" in ct.issues[0]


def test_a_missing_path_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="no such file or folder"):
        read_ct(tmp_path / "nowhere")


def test_a_single_enhanced_file_can_be_named(write_series, series_writer, recompress, slanted, voxel_centres, tmp_path):
    frames.enhanced_file(write_series, tmp_path / "ct", Tools(series_writer, recompress, slanted))
    ct = read_ct(tmp_path / "ct" / "all.dcm")
    assert np.abs(ct.array - slanted(voxel_centres(ct.affine, ct.array.shape))).max() < 0.03


def test_a_single_slice_file_names_the_remedy(write_series):
    with pytest.raises(DataError, match="a volume needs at least 2"):
        read_ct(write_series()[0])


def test_the_docs_have_the_same_table():
    text = DOCS.read_text(encoding="utf-8")
    missing = [fault.name for fault in FAULTS if f"| {fault.name} |" not in text]
    assert not missing
