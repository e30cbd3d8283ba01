"""A series as files: what is not there, twice, cut off, nested, linked or of something else."""

import shutil

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from ct_damage.frames import second


def no_files(write, folder, tools):
    folder.mkdir()
    (folder / "readme.bin").write_text("hello")


def nested_names(write, folder, tools):
    write(name=lambda k: f"level{k % 3}/IM{k}")


def no_preamble(write, folder, tools):
    """As files were before DICOM's part 10: no preamble, no meta header, implicit VR."""
    for path in write():
        dataset = pydicom.dcmread(path)
        bare = Dataset()
        bare.update({element.tag: element for element in dataset})
        pydicom.dcmwrite(path.with_suffix(""), bare, implicit_vr=True, little_endian=True)
        path.unlink()


def other_modality_beside(write, folder, tools):
    write()
    tools.writer(folder)(
        series="cr", name=lambda k: f"cr{k}.dcm", change=lambda dataset, k: setattr(dataset, "Modality", "CR")
    )


def only_cr(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "Modality", "CR"))


def two_series(write, folder, tools):
    write()
    tools.writer(folder)(series="two", name=lambda k: f"two{k}.dcm")


def copies(write, folder, tools):
    for path in write()[3:6]:
        shutil.copy(path, path.with_name(f"copy-{path.name}"))


def same_place(write, folder, tools, brighter=0.0):
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


def same_place_other_content(write, folder, tools):
    same_place(write, folder, tools, brighter=30.0)


def missing(write, folder, tools):
    write()[6].unlink()


def jitter(write, folder, tools):
    write(positions=np.arange(12) * 2.5 + np.array([0, 0.05, -0.04, 0.03] * 3))


def truncated_pixels(write, folder, tools):
    path = write()[5]
    path.write_bytes(path.read_bytes()[:-200])


def truncated_header(write, folder, tools):
    path = write()[5]
    path.write_bytes(path.read_bytes()[:500])


def empty_file(write, folder, tools):
    write()[5].write_bytes(b"")


def garbage(write, folder, tools):
    write()[5].write_bytes(np.random.default_rng(0).bytes(3000))


def damaged_stream(write, folder, tools):
    path = write(change=lambda dataset, k: tools.recompress(dataset, "JPEG2000"), scale=(1.0, -1024.0))[5]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - 250])


def localizer(write, folder, tools):
    write()

    def change(dataset, k):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.SOPInstanceUID = dataset.SOPInstanceUID[:-2] + "8"
        return k == 0

    tools.writer(folder)(
        shape=(30, 30), row=(1, 0, 0), column=(0, 0, -1), name=lambda k: f"scout{k}.dcm", change=change
    )


def derived_beside(write, folder, tools):
    def derived(dataset, k):
        dataset.ImageType = ["DERIVED", "SECONDARY", "MIP"]

    second(write, folder, tools, lambda dataset, k: None, derived, shift=0.7)


def sheet(write, folder, tools, image_type=("DERIVED", "SECONDARY", "DOSE_INFO"), sop_class=None):
    write()

    def change(dataset, k):
        dataset.ImageType = list(image_type)
        dataset.SOPInstanceUID = dataset.SOPInstanceUID[:-3] + "99"
        if sop_class is not None:
            dataset.SOPClassUID = sop_class
        return k == 0

    tools.writer(folder)(shape=(64, 64), name=lambda k: f"sheet{k}.dcm", change=change)


def capture(write, folder, tools):
    sheet(write, folder, tools, ("DERIVED", "SECONDARY"), "1.2.840.10008.5.1.4.1.1.7")


def colour_sheet(write, folder, tools):
    write()

    def change(dataset, k):
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = dataset.PixelData * 3
        dataset.SOPInstanceUID = dataset.SOPInstanceUID[:-3] + "99"
        return k == 0

    tools.writer(folder)(name=lambda k: f"sheet{k}.dcm", change=change)


def others_beside(write, folder, tools):
    write()
    for n in range(141):
        (folder / f"thumb{n}.jpg").write_bytes(b"\xff\xd8")


def linked(write, folder, tools):
    write()
    shutil.move(folder, folder.with_name("elsewhere"))
    folder.mkdir()
    (folder / "study").symlink_to(folder.with_name("elsewhere"), target_is_directory=True)
    (folder / "again").symlink_to(folder, target_is_directory=True)


def bare(write, folder, tools):
    def change(dataset, k):
        for name in ("FrameOfReferenceUID", "SliceThickness", "StudyInstanceUID", "ImageType", "InstanceNumber"):
            delattr(dataset, name)

    write(change=change)


def odd_one_out(write, folder, tools):
    write()
    tools.writer(folder)(
        positions=[12.5], shape=(20, 22), name=lambda k: "odd.dcm",
        change=lambda dataset, k: setattr(dataset, "SOPInstanceUID", dataset.SOPInstanceUID[:-3] + "99"),
    )  # fmt: skip
