"""The fault table: every way in which a series can be damaged, and what the user sees.

Each row damages a small series in one way and says whether it is met (read; the words are in ``.issues``) or refused
(one line with the words). Where it is met, every voxel still has the HU that belongs to its place. The table in
docs/imaging.md has the same rows.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless

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


def _no_files(write, folder, tools):
    folder.mkdir()
    (folder / "readme.bin").write_text("hello")


def _nested_names(write, folder, tools):
    write(name=lambda k: f"level{k % 3}/IM{k}")


def _no_preamble(write, folder, tools):
    """As files were before DICOM's part 10: no preamble, no meta header, implicit VR."""
    for path in write():
        dataset = pydicom.dcmread(path)
        bare = Dataset()
        bare.update({element.tag: element for element in dataset})
        pydicom.dcmwrite(path.with_suffix(""), bare, implicit_vr=True, little_endian=True)
        path.unlink()


def _other_modality_beside(write, folder, tools):
    write()
    tools.writer(folder)(
        series="cr", name=lambda k: f"cr{k}.dcm", change=lambda dataset, k: setattr(dataset, "Modality", "CR")
    )


def _only_cr(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "Modality", "CR"))


def _two_series(write, folder, tools):
    write()
    tools.writer(folder)(series="two", name=lambda k: f"two{k}.dcm")


def _copies(write, folder, tools):
    for path in write()[3:6]:
        shutil.copy(path, path.with_name(f"copy-{path.name}"))


def _same_place(write, folder, tools, brighter=0.0):
    write()

    def change(dataset, k):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID[:-4] + "9999"
        dataset.InstanceNumber = 100 + k

    tools.writer(folder)(
        positions=np.arange(12) * 2.5,
        name=lambda k: f"again{k}.dcm" if k in (4, 5) else f"../unused/{k}",
        change=change,
        hu=lambda points: tools.slanted(points) + brighter,
    )


def _same_place_other_content(write, folder, tools):
    _same_place(write, folder, tools, brighter=30.0)


def _missing(write, folder, tools):
    write()[6].unlink()


def _jitter(write, folder, tools):
    write(positions=np.arange(12) * 2.5 + np.array([0, 0.05, -0.04, 0.03] * 3))


def _truncated_pixels(write, folder, tools):
    path = write()[5]
    path.write_bytes(path.read_bytes()[:-200])


def _truncated_header(write, folder, tools):
    path = write()[5]
    path.write_bytes(path.read_bytes()[:500])


def _empty_file(write, folder, tools):
    write()[5].write_bytes(b"")


def _garbage(write, folder, tools):
    write()[5].write_bytes(np.random.default_rng(0).bytes(3000))


def _damaged_stream(write, folder, tools):
    path = write(change=lambda dataset, k: tools.recompress(dataset, "JPEG2000"), scale=(1.0, -1024.0))[5]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 250])


def _big_endian(write, folder, tools):
    def change(dataset, k):
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()

    write(change=change)


def _scale_per_slice(write, folder, tools):
    def change(dataset, k):
        stored = np.frombuffer(dataset.PixelData, "<i2")
        shift = 100 * k
        dataset.RescaleIntercept = f"{-800 - 0.02 * shift:.6g}"
        dataset.PixelData = (stored + shift).astype("<i2").tobytes()

    write(change=change)


def _no_rescale(write, folder, tools):
    def change(dataset, k):
        del dataset.RescaleSlope, dataset.RescaleIntercept

    write(change=change, scale=(1.0, 0.0))


def _unsigned_padding(write, folder, tools):
    def change(dataset, k):
        stored = np.frombuffer(dataset.PixelData, "<i2").reshape(20, 24).copy()
        stored[:3] = -2000
        dataset.PixelPaddingValue = 63536
        dataset["PixelPaddingValue"].VR = "US"
        dataset.PixelData = stored.tobytes()

    write(change=change, scale=(1.0, -1024.0))


def _undeclared_padding(write, folder, tools):
    def change(dataset, k):
        stored = np.frombuffer(dataset.PixelData, "<i2").reshape(20, 24).copy()
        stored[:3] = -2000
        dataset.PixelData = stored.tobytes()

    write(change=change, scale=(1.0, -1024.0))


def _sizes(write, folder, tools):
    write(name=lambda k: f"{k}.dcm" if k < 6 else f"../unused/{k}")
    tools.writer(folder)(shape=(20, 22), name=lambda k: f"{k}.dcm" if k >= 6 else f"../unused/{k}")


def _spacings(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "PixelSpacing", [0.7, 0.65]) if k == 6 else None)


def _turned(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "ImageOrientationPatient", [0, 1, 0, 1, 0, 0]) if k == 6 else None)


def _localizer(write, folder, tools):
    write()

    def change(dataset, k):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.SOPInstanceUID = dataset.SOPInstanceUID[:-2] + "8"
        return k == 0

    tools.writer(folder)(
        shape=(30, 30), row=(1, 0, 0), column=(0, 0, -1), name=lambda k: f"scout{k}.dcm", change=change
    )


def _no_position(write, folder, tools):
    write(change=lambda dataset, k: dataset.__delattr__("ImagePositionPatient") if k == 5 else None)


def _bad_number(write, folder, tools):
    path = write()[5]
    path.write_bytes(path.read_bytes().replace(b"-8\\-6\\-1.5", b"-8\\-6\\-x.5"))


def _bad_orientation(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]))


def _sideways(write, folder, tools):
    def change(dataset, k):
        if k == 6:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x + 3, y, z]

    write(change=change)


def _one_slice(write, folder, tools):
    write(positions=[0.0])


def _colour(write, folder, tools):
    def change(dataset, k):
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = dataset.PixelData * 3

    write(change=change)


def _grey_levels(write, folder, tools):
    write(scale=(1.0, 0.0), hu=lambda points: points[..., 2] * 2 + 120)


def _enhanced(write, folder, tools, per_frame=True):
    """Twelve frames in shuffled order in one file."""
    frames = [pydicom.dcmread(path) for path in write()]
    order = np.random.default_rng(1).permutation(12)
    merged = Dataset()
    merged.update({element.tag: element for element in frames[0] if element.tag.group != 0x7FE0})
    merged.file_meta = frames[0].file_meta
    merged.SOPClassUID = merged.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(merged, name)
    merged.NumberOfFrames = 12
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = frames[0].ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = frames[0].PixelSpacing, "2.5"
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    merged.SharedFunctionalGroupsSequence = Sequence([shared])
    groups, pixels = [], []
    for place, k in enumerate(order):
        group, position, scale = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = frames[k].ImagePositionPatient
        shift = 50 * place if per_frame else 0
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = "0.02", f"{-800 - 0.02 * shift:.6g}", "HU"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = Sequence([position]), Sequence([scale])
        groups.append(group)
        pixels.append((np.frombuffer(frames[k].PixelData, "<i2") + shift).astype("<i2").tobytes())
    merged.PerFrameFunctionalGroupsSequence = Sequence(groups)
    merged.PixelData = b"".join(pixels)
    shutil.rmtree(folder)
    folder.mkdir()
    return merged


def _enhanced_file(write, folder, tools):
    _enhanced(write, folder, tools).save_as(folder / "all.dcm", enforce_file_format=True)


def _enhanced_one_scale(write, folder, tools):
    _enhanced(write, folder, tools, per_frame=False).save_as(folder / "all.dcm", enforce_file_format=True)


def _enhanced_packed(write, folder, tools):
    merged = _enhanced(write, folder, tools)
    merged.compress(RLELossless, generate_instance_uid=False)
    merged.save_as(folder / "all.dcm", enforce_file_format=True)


def _frames_without_place(write, folder, tools):
    merged = _enhanced(write, folder, tools)
    del merged.PerFrameFunctionalGroupsSequence
    merged.save_as(folder / "all.dcm", enforce_file_format=True)


def _frame_count(write, folder, tools):
    merged = _enhanced(write, folder, tools)
    merged.PerFrameFunctionalGroupsSequence = merged.PerFrameFunctionalGroupsSequence[:-1]
    merged.save_as(folder / "all.dcm", enforce_file_format=True)


def _second(write, folder, tools, first, second, shift=0.0):
    """A second acquisition of the same scan, 200 HU brighter; ``first``, ``second``: change(dataset, k) of each."""
    write(change=first)

    def change(dataset, k):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = (
            f"{dataset.SOPInstanceUID[:-5]}777{k + 10}"
        )
        second(dataset, k)

    tools.writer(folder)(
        positions=np.arange(12) * 2.5 + shift,
        name=lambda k: f"again{k:03d}.dcm",
        change=change,
        hu=lambda points: tools.slanted(points) + 200,
    )


def _numbered(number):
    return lambda dataset, k: setattr(dataset, "AcquisitionNumber", number)


def _two_acquisitions(write, folder, tools):
    _second(write, folder, tools, _numbered(1), _numbered(2))


def _two_acquisitions_between(write, folder, tools):
    _second(write, folder, tools, _numbered(3), _numbered(10), shift=1.25)


def _two_times(write, folder, tools):
    def at(time):
        return lambda dataset, k: setattr(dataset, "TemporalPositionIdentifier", time)

    _second(write, folder, tools, at(1), at(2))


def _numbered_on(write, folder, tools):
    _second(
        write,
        folder,
        tools,
        lambda dataset, k: None,
        lambda dataset, k: setattr(dataset, "InstanceNumber", 13 + k),
        1.25,
    )


def _not_told_apart(write, folder, tools, shift=0.0):
    _second(write, folder, tools, lambda dataset, k: None, lambda dataset, k: None, shift)


def _not_told_apart_between(write, folder, tools):
    _not_told_apart(write, folder, tools, shift=1.25)


def _rising_acquisitions(write, folder, tools):
    """As a scanner that moves the table step by step writes them: four slices a step."""
    write(change=lambda dataset, k: setattr(dataset, "AcquisitionNumber", 1 + k // 4))


def _times_in_no_order(write, folder, tools):
    """A field that differs from slice to slice, in another order than the slices."""
    order = np.random.default_rng(2).permutation(12)

    def change(dataset, k):
        dataset.ContentTime = f"1010{order[k] + 10}"
        dataset.AcquisitionTime = f"1010{order[k] // 2 + 10}"

    write(change=change)


def _two_of_two_sizes(write, folder, tools):
    """A repeated scan of the upper half alone: the whole one is the larger."""
    _second(write, folder, tools, _numbered(2), _numbered(1))
    for k in range(6):
        (folder / f"again{k:03d}.dcm").unlink()


def _enhanced_times(write, folder, tools):
    """Two points in time, six slices each, in one enhanced file; the second is 200 HU brighter."""
    merged = _enhanced(write, folder, tools)
    content = []
    for frame in merged.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        k = round((place.ImagePositionPatient[2] + 14) / 2.5)
        what = Dataset()
        what.TemporalPositionIndex = 1 + k // 6
        if k >= 6:
            place.ImagePositionPatient = [*place.ImagePositionPatient[:2], -14 + 2.5 * (k - 6)]
        content.append(what)
        frame.FrameContentSequence = Sequence([what])
    merged.save_as(folder / "all.dcm", enforce_file_format=True)


def _derived_beside(write, folder, tools):
    def derived(dataset, k):
        dataset.ImageType = ["DERIVED", "SECONDARY", "MIP"]

    _second(write, folder, tools, lambda dataset, k: None, derived, shift=0.7)


def _sheet(write, folder, tools, image_type=("DERIVED", "SECONDARY", "DOSE_INFO"), sop_class=None):
    write()

    def change(dataset, k):
        dataset.ImageType = list(image_type)
        dataset.SOPInstanceUID = dataset.SOPInstanceUID[:-3] + "99"
        if sop_class is not None:
            dataset.SOPClassUID = sop_class
        return k == 0

    tools.writer(folder)(shape=(64, 64), name=lambda k: f"sheet{k}.dcm", change=change)


def _capture(write, folder, tools):
    _sheet(write, folder, tools, ("DERIVED", "SECONDARY"), "1.2.840.10008.5.1.4.1.1.7")


def _colour_sheet(write, folder, tools):
    write()

    def change(dataset, k):
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = dataset.PixelData * 3
        dataset.SOPInstanceUID = dataset.SOPInstanceUID[:-3] + "99"
        return k == 0

    tools.writer(folder)(name=lambda k: f"sheet{k}.dcm", change=change)


def _shown_inverted(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "PhotometricInterpretation", "MONOCHROME1"))


def _not_hounsfield(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "RescaleType", "Z_EFF"))


def _one_not_hounsfield(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "RescaleType", "MGML" if k == 5 else "HU"))


def _unspecified(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "RescaleType", "US"))


def _tissue_as_padding(write, folder, tools):
    def change(dataset, k):
        stored = np.frombuffer(dataset.PixelData, "<i2").reshape(20, 24)
        dataset.PixelPaddingValue = int(stored[10, 12])
        dataset["PixelPaddingValue"].VR = "SS"

    write(change=change)


def _far_slice(write, folder, tools):
    def change(dataset, k):
        if k == 12:
            dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], 10_000]

    write(positions=np.arange(13) * 2.5, change=change)


def _stored_bits(write, folder, tools):
    """Twelve bits are values, the other four hold an overlay."""

    def change(dataset, k):
        dataset.BitsStored, dataset.HighBit = 12, 11
        stored = np.frombuffer(dataset.PixelData, "<i2")
        overlay = np.random.default_rng(k).integers(0, 16, stored.size, dtype=np.uint16) << 12
        dataset.PixelData = ((stored.view(np.uint16) & 0x0FFF) | overlay).tobytes()

    write(change=change, scale=(1.0, -800.0))


def _deflated(write, folder, tools):
    for path in write():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.save_as(path, enforce_file_format=True)


def _syntax(path, uid):
    """Another TransferSyntaxUID in the meta header and nothing else."""
    content = path.read_bytes()
    end = 144 + int.from_bytes(content[140:144], "little")
    meta = pydicom.filereader.read_file_meta_info(path)
    old = str(meta.TransferSyntaxUID).encode()
    old += b"\0" * (len(old) % 2)
    new = uid.encode() + b"\0" * (len(uid) % 2)
    head = content[:end].replace(bytes([len(old), 0]) + old, bytes([len(new), 0]) + new)
    size = len(head) - 144
    path.write_bytes(head[:140] + size.to_bytes(4, "little") + head[144:] + content[end:])


def _compressed_called_plain(write, folder, tools):
    path = write(change=lambda dataset, k: tools.recompress(dataset, "RLE"), scale=(1.0, -1024.0))[5]
    _syntax(path, "1.2.840.10008.1.2.1")


def _plain_called_compressed(write, folder, tools):
    _syntax(write()[5], "1.2.840.10008.1.2.4.70")


def _jpeg_called_rle(write, folder, tools):
    path = write(change=lambda dataset, k: tools.recompress(dataset, "JPEG2000"), scale=(1.0, -1024.0))[5]
    _syntax(path, "1.2.840.10008.1.2.5")


def _called_big_endian(write, folder, tools):
    _syntax(write()[5], "1.2.840.10008.1.2.2")


def _unknown_syntax(write, folder, tools):
    _syntax(write()[5], "1.2.840.113619.5.2")


def _compressed_size(write, folder, tools):
    """A compressed picture that says it is another size than the header's."""
    path = write(change=lambda dataset, k: tools.recompress(dataset, "JPEG2000"), scale=(1.0, -1024.0))[5]
    content = path.read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 8
    path.write_bytes(content[:at] + (60_000).to_bytes(4, "big") + content[at + 4 :])


def _element(path, name, change):
    """Change the bytes of one element: tag, VR, length and value."""
    content = path.read_bytes()
    tag = pydicom.datadict.tag_for_keyword(name)
    at = content.index((tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little"), 140)
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    path.write_bytes(content[:at] + change(content[at : at + 8 + length]) + content[at + 8 + length :])


def _flipped_vr(write, folder, tools):
    _element(write()[5], "Rows", lambda element: element[:4] + b"FD" + element[6:])


def _instance_number_of_words(write, folder, tools):
    for path in write():
        _element(path, "InstanceNumber", lambda element: element[:8] + b"x" * (len(element) - 8))


def _sign_that_is_none(write, folder, tools):
    _element(write()[5], "PixelRepresentation", lambda element: element[:4] + b"DS\2\0x.")


def _long_value(write, folder, tools):
    """An element that says it has 4 GB."""
    _element(write()[5], "SeriesInstanceUID", lambda element: element[:4] + b"UN\0\0\xf0\xff\xff\xff" + element[8:])


def _bytes_put_in(write, folder, tools):
    path = write()[5]
    content = path.read_bytes()
    path.write_bytes(content[:-400] + b"abc" + content[-400:])


def _others_beside(write, folder, tools):
    write()
    for n in range(141):
        (folder / f"thumb{n}.jpg").write_bytes(b"\xff\xd8")


def _linked(write, folder, tools):
    write()
    shutil.move(folder, folder.with_name("elsewhere"))
    folder.mkdir()
    (folder / "study").symlink_to(folder.with_name("elsewhere"), target_is_directory=True)
    (folder / "again").symlink_to(folder, target_is_directory=True)


def _bare(write, folder, tools):
    def change(dataset, k):
        for name in ("FrameOfReferenceUID", "SliceThickness", "StudyInstanceUID", "ImageType", "InstanceNumber"):
            delattr(dataset, name)

    write(change=change)


def _metres(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "PixelSpacing", [700, 600]))


def _odd_one_out(write, folder, tools):
    write()
    tools.writer(folder)(
        positions=[12.5], shape=(20, 22), name=lambda k: "odd.dcm",
        change=lambda dataset, k: setattr(dataset, "SOPInstanceUID", dataset.SOPInstanceUID[:-3] + "99"),
    )  # fmt: skip


LEFT = r"12 slice\(s\) of another {} at the same places left out"

FAULTS = [
    Fault("no DICOM file", _no_files, "holds no DICOM file", UsageError),
    Fault("any names, nested folders", _nested_names),
    Fault("files without preamble and meta header", _no_preamble),
    Fault("CR or DX beside the CT", _other_modality_beside),
    Fault("no CT at all", _only_cr, r"has no CT series \(found 1 CR\)", DataError),
    Fault("several CT series in one folder", _two_series, "has 2 CT series; name one", UsageError),
    Fault("files copied twice", _copies, r"3 file\(s\) present twice"),
    Fault("two slices at one place, equal", _same_place, r"2 slice\(s\) at the place of another \(all equal\)"),
    Fault(
        "two slices at one place, different", _same_place_other_content,
        r"2 slice\(s\) at the place of another \(2 with other content\), lowest instance number kept",
    ),
    Fault("missing slice", _missing, r"gap of 5\.00 mm between -1\.50 and 3\.50 mm.*\(1 slice\(s\) missing\)"),
    Fault("jittered spacing", _jitter, "slice spacing varies from 2.41. to 2.57. mm"),
    Fault("pixels cut short", _truncated_pixels, r"slice005\.dcm: is truncated \(760 of 960 bytes .*\): left out"),
    Fault("file cut inside its header", _truncated_header, r"slice005\.dcm: .*: left out"),
    Fault("empty file", _empty_file, r"slice005\.dcm: .*: left out"),
    Fault("file of random bytes", _garbage, r"slice005\.dcm: is not DICOM or its head is damaged: left out"),
    Fault("damaged compressed pixels", _damaged_stream, r"slice005\.dcm.*: left out", tolerance=0.51),
    Fault("big-endian pixels", _big_endian),
    Fault("rescale differs from slice to slice", _scale_per_slice),
    Fault("no rescale slope or intercept", _no_rescale, "12 .* without rescale slope or intercept", tolerance=0.51),
    Fault("padding value, written unsigned", _unsigned_padding, "padding value in 15.0% of pixels", tolerance=0.51),
    Fault("padding not declared", _undeclared_padding, "15.0% of pixels below -1024 HU", tolerance=0.51),
    Fault("slices of different size", _sizes, r"differ in size \(20x22, 20x24\); they are not one volume", DataError),
    Fault(
        "a slice of another pixel spacing", _spacings,
        r"1 slice\(s\) of another pixel spacing \(0.7 x 0.65 mm; most: 0.7 x 0.6 mm\) left out\n.*1 slice\(s\) missing",
    ),
    Fault("a slice of another orientation", _turned, r"1 slice\(s\) of another orientation .* left out"),
    Fault("localizer in the series", _localizer, r"1 localizer image\(s\) left out"),
    Fault("slice without position", _no_position, r"slice005\.dcm: ImagePositionPatient has 0 of 3 numbers: left out"),
    Fault("position that is no number", _bad_number, r"slice005\.dcm: .*: left out"),
    Fault("orientation that is no frame", _bad_orientation, "is not two unit vectors", DataError),
    Fault("slice shifted sideways", _sideways, "shifted sideways against each other by up to 2", DataError),
    Fault("one slice", _one_slice, r"has 1 usable slice\(s\)", DataError),
    Fault("colour images", _colour, "is a colour image", DataError),
    Fault("two acquisitions at the same places", _two_acquisitions, LEFT.format("acquisition number") + r" \(kept: 1"),
    Fault("two acquisitions half a step apart", _two_acquisitions_between, LEFT.format("acquisition number")),
    Fault("two points in time", _two_times, LEFT.format("temporal position")),
    Fault("a second acquisition that is numbered on", _numbered_on, LEFT.format("run of instance numbers")),
    Fault("two acquisitions that no field tells apart", _not_told_apart, "12 slices lie at the place", DataError),
    Fault("the same, half a step apart", _not_told_apart_between, "share their InstanceNumber", DataError),
    Fault("an acquisition number for every few slices", _rising_acquisitions),
    Fault("times of slices in no order", _times_in_no_order),
    Fault("a part of the scan repeated", _two_of_two_sizes, r"6 slice\(s\) of another acq.*kept: 2; left: 1"),
    Fault("enhanced CT, two points in time", _enhanced_times, r"6 slice\(s\) of another temporal position"),
    Fault("derived images between the slices", _derived_beside, LEFT.format("image type")),
    Fault("dose sheet in the series", _sheet, r"1 sheet\(s\) or screen capture\(s\) left out"),
    Fault("screen capture in the series", _capture, r"1 sheet\(s\) or screen capture\(s\) left out"),
    Fault("colour sheet in the series", _colour_sheet, r"sheet0\.dcm: is a colour image, not CT values: left out"),
    Fault("a slice of another size", _odd_one_out, r"1 slice\(s\) of another size \(20x22; most: 20x24\) left out"),
    Fault("MONOCHROME1", _shown_inverted, r"12 slice\(s\) MONOCHROME1 \(to be shown inverted\)"),
    Fault("another quantity than HU", _not_hounsfield, "RescaleType is Z_EFF, not HU", DataError),
    Fault("one slice of another quantity", _one_not_hounsfield, r"slice005\.dcm: RescaleType is MGML, not HU.*: left"),
    Fault("RescaleType unspecified", _unspecified, r"12 slice\(s\) with RescaleType US \(unspecified\): taken as HU"),
    Fault("a tissue's value declared as not measured", _tissue_as_padding, "declared padding value .* HU kept in "),
    Fault("a slice 10 m away", _far_slice, r"1 slice\(s\) more than 100 mm away from the others left out"),
    Fault("overlay in the unused bits", _stored_bits, tolerance=0.51),
    Fault("deflated files", _deflated),
    Fault(
        "compressed pixels called uncompressed", _compressed_called_plain,
        r"says Explicit VR Little Endian, but the pixels are compressed: left out", tolerance=0.51,
    ),
    Fault(
        "uncompressed pixels called compressed", _plain_called_compressed,
        r"says JPEG Lossless.*, but the pixels are not compressed: left out",
    ),
    Fault(
        "compressed in another way than it says", _jpeg_called_rle,
        "TransferSyntaxUID says RLE Lossless, but the pixels are JPEG 2000: left out", tolerance=0.51,
    ),
    Fault("little endian called big endian", _called_big_endian, "says Explicit VR Big Endian, but the file is"),
    Fault("unknown transfer syntax", _unknown_syntax, "TransferSyntaxUID '1.2.840.113619.5.2' is no transfer syntax"),
    Fault(
        "compressed pixels of another size", _compressed_size,
        r"compressed pixels are 20 x 60000, its header says 20 x 24: left out", tolerance=0.51,
    ),
    Fault("a value representation flipped", _flipped_vr, r"slice005\.dcm: header cannot be read .*: left out"),
    Fault("instance numbers that are none", _instance_number_of_words),
    Fault("pixel representation that is no number", _sign_that_is_none, r"slice005\.dcm: header cannot be read"),
    Fault("a length of 4 GB", _long_value, r"slice005\.dcm: .*: left out"),
    Fault("bytes put in between the pixels", _bytes_put_in, r"slice005\.dcm: is damaged \(what follows its pixels"),
    Fault("141 other files beside", _others_beside, r"141 file\(s\) that are not DICOM passed over"),
    Fault("folders linked, in a circle too", _linked),
    Fault("only what a slice needs", _bare),
    Fault("spacing in another unit", _metres, r"voxel spacing 600 x 700 x 2\.5 mm is not plausible", DataError),
    Fault("grey levels instead of HU", _grey_levels, "nothing below -300, so these may not be HU", tolerance=np.inf),
    Fault("enhanced CT, frames shuffled, own rescale", _enhanced_file),
    Fault("enhanced CT, one rescale", _enhanced_one_scale),
    Fault("enhanced CT, compressed", _enhanced_packed),
    Fault("several frames without positions", _frames_without_place, "no positions for them", DataError),
    Fault("fewer frame descriptions than frames", _frame_count, "NumberOfFrames is 12, but 11 are", DataError),
]  # fmt: skip


@dataclass(frozen=True)
class Tools:
    writer: type
    recompress: Callable
    slanted: Callable


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(fault, write_series, series_writer, recompress, slanted, voxel_centres, tmp_path):
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
    _enhanced_file(write_series, tmp_path / "ct", Tools(series_writer, recompress, slanted))
    ct = read_ct(tmp_path / "ct" / "all.dcm")
    assert np.abs(ct.array - slanted(voxel_centres(ct.affine, ct.array.shape))).max() < 0.03


def test_a_single_slice_file_names_the_remedy(write_series):
    with pytest.raises(DataError, match="a volume needs at least 2"):
        read_ct(write_series()[0])


def test_the_docs_have_the_same_table():
    text = DOCS.read_text(encoding="utf-8")
    missing = [fault.name for fault in FAULTS if f"| {fault.name} |" not in text]
    assert not missing
