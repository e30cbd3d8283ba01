"""Nodules written as TCIA's reader XML, so that a simulated or re-identified series carries its annotations with it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from lidc_xai.annotations.nodule import Contour, Nodule, Reading
from lidc_xai.annotations.reader_xml import ROOT, XML_NAMES
from lidc_xai.errors import UsageError
from lidc_xai.files import atomic_path

NAMESPACE = "http://www.nih.gov"


def write_reader_xml(path: Path | str, nodules: Sequence[Nodule]) -> Path:
    """Write the nodules of one series as one XML file; reading it back gives the same nodules.

    Readings keep the order of their ids; a new session starts where the same nodule comes again. Raises UsageError for
    none, or for nodules of several series.

    >>> path = write_reader_xml(folder / "readers.xml", [nodule])
    >>> [one.n_readers for one in load_nodules(path)]
    [4]
    """
    series = sorted({nodule.series_uid for nodule in nodules})
    if len(series) != 1:
        raise UsageError(f"{path}: one XML file holds one series, got {len(series)}; write one file per series")
    root = ET.Element(ROOT, {"xmlns": NAMESPACE})
    header = ET.SubElement(root, "ResponseHeader")
    _add(header, "Version", "1.8.1")
    _add(header, "SeriesInstanceUid", series[0])
    _add(header, "StudyInstanceUID", nodules[0].study_uid)
    for session_readings in _sessions(nodules):
        session = ET.SubElement(root, "readingSession")
        _add(session, "annotationVersion", "3.12")
        for reading in session_readings:
            _add_reading(session, reading)
    ET.indent(root)
    path = Path(path)
    with atomic_path(path) as temporary:
        ET.ElementTree(root).write(temporary, encoding="utf-8", xml_declaration=True)
    return path


def _sessions(nodules: Sequence[Nodule]) -> list[list[Reading]]:
    pairs = [(reading.annotation_id, n, reading) for n, nodule in enumerate(nodules) for reading in nodule.readers]
    sessions: list[list[Reading]] = []
    seen: set[int] = set()
    for _, n, reading in sorted(pairs, key=lambda pair: pair[0]):
        if not sessions or n in seen:
            sessions.append([])
            seen = set()
        sessions[-1].append(reading)
        seen.add(n)
    return sessions


def _add_reading(session: ET.Element, reading: Reading) -> None:
    nodule = ET.SubElement(session, "unblindedReadNodule")
    _add(nodule, "noduleID", reading.label or str(reading.annotation_id))
    rated = ET.SubElement(nodule, "characteristics")
    for name, value in reading.ratings.items():
        _add(rated, XML_NAMES[name], str(value))
    for contour in reading.contours:
        _add_contour(nodule, contour)


def _add_contour(nodule: ET.Element, contour: Contour) -> None:
    roi = ET.SubElement(nodule, "roi")
    _add(roi, "imageZposition", repr(float(contour.z_mm)))
    _add(roi, "imageSOP_UID", contour.sop_uid or "")
    _add(roi, "inclusion", "TRUE" if contour.inclusion else "FALSE")
    for column, row in contour.ij.tolist():
        edge = ET.SubElement(roi, "edgeMap")
        _add(edge, "xCoord", str(column))
        _add(edge, "yCoord", str(row))


def _add(parent: ET.Element, tag: str, text: str) -> None:
    ET.SubElement(parent, tag).text = text
