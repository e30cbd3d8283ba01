"""Frames of enhanced CT, and acquisitions that share one series."""

import shutil

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless


def enhanced(write, folder, tools, per_frame=True):
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


def enhanced_file(write, folder, tools):
    enhanced(write, folder, tools).save_as(folder / "all.dcm", enforce_file_format=True)


def enhanced_one_scale(write, folder, tools):
    enhanced(write, folder, tools, per_frame=False).save_as(folder / "all.dcm", enforce_file_format=True)


def enhanced_packed(write, folder, tools):
    merged = enhanced(write, folder, tools)
    merged.compress(RLELossless, generate_instance_uid=False)
    merged.save_as(folder / "all.dcm", enforce_file_format=True)


def frames_without_place(write, folder, tools):
    merged = enhanced(write, folder, tools)
    del merged.PerFrameFunctionalGroupsSequence
    merged.save_as(folder / "all.dcm", enforce_file_format=True)


def frame_count(write, folder, tools):
    merged = enhanced(write, folder, tools)
    merged.PerFrameFunctionalGroupsSequence = merged.PerFrameFunctionalGroupsSequence[:-1]
    merged.save_as(folder / "all.dcm", enforce_file_format=True)


def second(write, folder, tools, first, second, shift=0.0):
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


def numbered(number):
    return lambda dataset, k: setattr(dataset, "AcquisitionNumber", number)


def two_acquisitions(write, folder, tools):
    second(write, folder, tools, numbered(1), numbered(2))


def two_acquisitions_between(write, folder, tools):
    second(write, folder, tools, numbered(3), numbered(10), shift=1.25)


def two_times(write, folder, tools):
    def at(time):
        return lambda dataset, k: setattr(dataset, "TemporalPositionIdentifier", time)

    second(write, folder, tools, at(1), at(2))


def numbered_on(write, folder, tools):
    second(
        write,
        folder,
        tools,
        lambda dataset, k: None,
        lambda dataset, k: setattr(dataset, "InstanceNumber", 13 + k),
        1.25,
    )


def not_told_apart(write, folder, tools, shift=0.0):
    second(write, folder, tools, lambda dataset, k: None, lambda dataset, k: None, shift)


def not_told_apart_between(write, folder, tools):
    not_told_apart(write, folder, tools, shift=1.25)


def rising_acquisitions(write, folder, tools):
    """As a scanner that moves the table step by step writes them: four slices a step."""
    write(change=lambda dataset, k: setattr(dataset, "AcquisitionNumber", 1 + k // 4))


def times_in_no_order(write, folder, tools):
    """A field that differs from slice to slice, in another order than the slices."""
    order = np.random.default_rng(2).permutation(12)

    def change(dataset, k):
        dataset.ContentTime = f"1010{order[k] + 10}"
        dataset.AcquisitionTime = f"1010{order[k] // 2 + 10}"

    write(change=change)


def two_of_two_sizes(write, folder, tools):
    """A repeated scan of the upper half alone: the whole one is the larger."""
    second(write, folder, tools, numbered(2), numbered(1))
    for k in range(6):
        (folder / f"again{k:03d}.dcm").unlink()


def enhanced_times(write, folder, tools):
    """Two points in time, six slices each, in one enhanced file; the second is 200 HU brighter."""
    merged = enhanced(write, folder, tools)
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
