"""Values and geometry: scales, padding, sizes, spacings, orientations."""

import numpy as np
from pydicom.uid import ExplicitVRBigEndian


def big_endian(write, folder, tools):
    def change(dataset, k):
        dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()

    write(change=change)


def scale_per_slice(write, folder, tools):
    def change(dataset, k):
        stored = np.frombuffer(dataset.PixelData, "<i2")
        shift = 100 * k
        dataset.RescaleIntercept = f"{-800 - 0.02 * shift:.6g}"
        dataset.PixelData = (stored + shift).astype("<i2").tobytes()

    write(change=change)


def no_rescale(write, folder, tools):
    def change(dataset, k):
        del dataset.RescaleSlope, dataset.RescaleIntercept

    write(change=change, scale=(1.0, 0.0))


def unsigned_padding(write, folder, tools):
    def change(dataset, k):
        stored = np.frombuffer(dataset.PixelData, "<i2").reshape(20, 24).copy()
        stored[:3] = -2000
        dataset.PixelPaddingValue = 63536
        dataset["PixelPaddingValue"].VR = "US"
        dataset.PixelData = stored.tobytes()

    write(change=change, scale=(1.0, -1024.0))


def undeclared_padding(write, folder, tools):
    def change(dataset, k):
        stored = np.frombuffer(dataset.PixelData, "<i2").reshape(20, 24).copy()
        stored[:3] = -2000
        dataset.PixelData = stored.tobytes()

    write(change=change, scale=(1.0, -1024.0))


def sizes(write, folder, tools):
    write(name=lambda k: f"{k}.dcm" if k < 6 else f"../unused/{k}")
    tools.writer(folder)(shape=(20, 22), name=lambda k: f"{k}.dcm" if k >= 6 else f"../unused/{k}")


def spacings(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "PixelSpacing", [0.7, 0.65]) if k == 6 else None)


def turned(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "ImageOrientationPatient", [0, 1, 0, 1, 0, 0]) if k == 6 else None)


def no_position(write, folder, tools):
    write(change=lambda dataset, k: dataset.__delattr__("ImagePositionPatient") if k == 5 else None)


def bad_number(write, folder, tools):
    path = write()[5]
    path.write_bytes(path.read_bytes().replace(b"-8\\-6\\-1.5", b"-8\\-6\\-x.5"))


def bad_orientation(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]))


def sideways(write, folder, tools):
    def change(dataset, k):
        if k == 6:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x + 3, y, z]

    write(change=change)


def one_slice(write, folder, tools):
    write(positions=[0.0])


def colour(write, folder, tools):
    def change(dataset, k):
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.PixelData = dataset.PixelData * 3

    write(change=change)


def grey_levels(write, folder, tools):
    write(scale=(1.0, 0.0), hu=lambda points: points[..., 2] * 2 + 120)


def shown_inverted(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "PhotometricInterpretation", "MONOCHROME1"))


def not_hounsfield(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "RescaleType", "Z_EFF"))


def one_not_hounsfield(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "RescaleType", "MGML" if k == 5 else "HU"))


def unspecified(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "RescaleType", "US"))


def tissue_as_padding(write, folder, tools):
    def change(dataset, k):
        stored = np.frombuffer(dataset.PixelData, "<i2").reshape(20, 24)
        dataset.PixelPaddingValue = int(stored[10, 12])
        dataset["PixelPaddingValue"].VR = "SS"

    write(change=change)


def far_slice(write, folder, tools):
    def change(dataset, k):
        if k == 12:
            dataset.ImagePositionPatient = [*dataset.ImagePositionPatient[:2], 10_000]

    write(positions=np.arange(13) * 2.5, change=change)


def stored_bits(write, folder, tools):
    """Twelve bits are values, the other four hold an overlay."""

    def change(dataset, k):
        dataset.BitsStored, dataset.HighBit = 12, 11
        stored = np.frombuffer(dataset.PixelData, "<i2")
        overlay = np.random.default_rng(k).integers(0, 16, stored.size, dtype=np.uint16) << 12
        dataset.PixelData = ((stored.view(np.uint16) & 0x0FFF) | overlay).tobytes()

    write(change=change, scale=(1.0, -800.0))


def metres(write, folder, tools):
    write(change=lambda dataset, k: setattr(dataset, "PixelSpacing", [700, 600]))
