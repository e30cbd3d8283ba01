"""Bytes: transfer syntaxes that lie, and single elements of the header."""

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian


def deflated(write, folder, tools):
    for path in write():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        dataset.save_as(path, enforce_file_format=True)


def syntax(path, uid):
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


def compressed_called_plain(write, folder, tools):
    path = write(change=lambda dataset, k: tools.recompress(dataset, "RLE"), scale=(1.0, -1024.0))[5]
    syntax(path, "1.2.840.10008.1.2.1")


def plain_called_compressed(write, folder, tools):
    syntax(write()[5], "1.2.840.10008.1.2.4.70")


def jpeg_called_rle(write, folder, tools):
    path = write(change=lambda dataset, k: tools.recompress(dataset, "JPEG2000"), scale=(1.0, -1024.0))[5]
    syntax(path, "1.2.840.10008.1.2.5")


def called_big_endian(write, folder, tools):
    syntax(write()[5], "1.2.840.10008.1.2.2")


def unknown_syntax(write, folder, tools):
    syntax(write()[5], "1.2.840.113619.5.2")


def compressed_size(write, folder, tools):
    """A compressed picture that says it is another size than the header's."""
    path = write(change=lambda dataset, k: tools.recompress(dataset, "JPEG2000"), scale=(1.0, -1024.0))[5]
    content = path.read_bytes()
    at = content.index(b"\xff\x4f\xff\x51") + 8
    path.write_bytes(content[:at] + (60_000).to_bytes(4, "big") + content[at + 4 :])


def element(path, name, change):
    """Change the bytes of one element: tag, VR, length and value."""
    content = path.read_bytes()
    tag = pydicom.datadict.tag_for_keyword(name)
    at = content.index((tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little"), 140)
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    path.write_bytes(content[:at] + change(content[at : at + 8 + length]) + content[at + 8 + length :])


def flipped_vr(write, folder, tools):
    element(write()[5], "Rows", lambda element: element[:4] + b"FD" + element[6:])


def instance_number_of_words(write, folder, tools):
    for path in write():
        element(path, "InstanceNumber", lambda element: element[:8] + b"x" * (len(element) - 8))


def sign_that_is_none(write, folder, tools):
    element(write()[5], "PixelRepresentation", lambda element: element[:4] + b"DS\2\0x.")


def long_value(write, folder, tools):
    """An element that says it has 4 GB."""
    element(write()[5], "SeriesInstanceUID", lambda element: element[:4] + b"UN\0\0\xf0\xff\xff\xff" + element[8:])


def bytes_put_in(write, folder, tools):
    path = write()[5]
    content = path.read_bytes()
    path.write_bytes(content[:-400] + b"abc" + content[-400:])
