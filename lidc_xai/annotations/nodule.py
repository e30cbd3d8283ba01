"""A nodule as the radiologists drew and rated it: Nodule, its Readings, their Contours. No pixels.

Coordinates are indices into the stored pixel grid of the series' own DICOM images: i = column (``xCoord`` of the XML),
j = row (``yCoord``), k = index of the slice in ascending z. pylidc calls the row i and the column j: its
``Contour.to_matrix`` turns the stored "x,y" round. Here the order is column, row, as in NIfTI and ITK.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import pdist

MOST_READERS = 4
"""At most four radiologists read a scan; a group of more readings is two nodules that could not be told apart."""


@dataclass(frozen=True, eq=False)
class Contour:
    """One closed outline on one slice: the first pixels outside the nodule.

    ``z_mm``: z of the slice (last value of ImagePositionPatient). ``ij``: (n, 2) int32, column and row.
    ``inclusion``: False where the outline cuts a hole. ``k``: index of the slice nearest to ``z_mm``, ascending z.
    ``sop_uid``: SOPInstanceUID of the slice where the source gives it (XML does, the database does not).

    >>> contour = nodule.readers[0].contours[0]
    >>> contour.ij.shape[1], contour.inclusion
    (2, True)
    """

    z_mm: float
    ij: NDArray[np.int32]
    inclusion: bool
    k: int
    sop_uid: str | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """What one radiologist said and drew about one nodule.

    ``annotation_id``: key of the database's table (in XML of an unknown series: 1-based place in the file).
    ``ratings``: the nine of :data:`lidc_xai.ratings.READER_RATINGS`, int codes. ``contours``: in stored order.
    ``label``: the reader's own name for the nodule (``noduleID`` of the XML).

    >>> reading = nodule.readers[0]
    >>> reading.ratings["malignancy"] in range(1, 6), reading.diameter_mm > 0
    (True, True)
    """

    annotation_id: int
    ratings: dict[str, int]
    contours: list[Contour]
    pixel_spacing_mm: float
    label: str = ""

    @cached_property
    def diameter_mm(self) -> float:
        """Largest distance in mm between two points of one contour, over all slices (pylidc's definition).

        Contours of a single point are ignored; NaN where there is no other.
        """
        outlines = (contour.ij for contour in self.contours if len(contour.ij) > 1)
        widest = max((float(pdist(ij, "sqeuclidean").max()) for ij in outlines), default=np.nan)
        return float(np.sqrt(widest) * self.pixel_spacing_mm)

    @cached_property
    def points(self) -> NDArray[np.int32]:
        """(n, 3) column, row, slice index of all contour points."""
        slices = np.array([contour.k for contour in self.contours], np.int32)
        lengths = [len(contour.ij) for contour in self.contours]
        return np.column_stack([np.concatenate([contour.ij for contour in self.contours]), slices.repeat(lengths)])

    @property
    def centroid(self) -> NDArray[np.float64]:
        """(3,) mean column, row and slice index over all contour points."""
        return self.points.mean(axis=0)

    @property
    def centroid_z_mm(self) -> float:
        """Mean z in mm over all contour points."""
        return float(np.average([c.z_mm for c in self.contours], weights=[len(c.ij) for c in self.contours]))


@dataclass(frozen=True, eq=False)
class Nodule:
    """One group of readings that mean the same nodule of one scan.

    ``nodule_id``: "LIDC-IDRI-0003-s1-n1": patient, scan of the patient (1-based), group of the scan (0-based).
    ``ambiguous``: in this scan some group never came down to four readers, so its grouping needs a human eye.
    ``is_from_initial``: the scan belongs to the first phase of LIDC, ``contrast_used``: whether the header names a
    contrast agent; both ``None`` where not recorded. ``slice_positions_mm``: ascending z of all slices of the scan.

    >>> nodule.nodule_id, nodule.n_readers, len(nodule.readers)
    ('LIDC-IDRI-0475-s1-n0', 4, 4)
    """

    nodule_id: str
    patient_id: str
    series_uid: str
    study_uid: str
    scan_index: int
    cluster_index: int
    pixel_spacing_mm: float
    slice_thickness_mm: float
    slice_positions_mm: NDArray[np.float64]
    readers: list[Reading]
    ambiguous: bool
    is_from_initial: bool | None
    contrast_used: bool | None

    @property
    def n_readers(self) -> int:
        """Number of readings in the group (more than four where the grouping failed)."""
        return len(self.readers)

    @property
    def centroid(self) -> NDArray[np.float64]:
        """(3,) column, row and slice index: the mean of the readers' centroids."""
        return np.mean([reading.centroid for reading in self.readers], axis=0)

    @property
    def centroid_z_mm(self) -> float:
        """z in mm: the mean of the readers' centroids."""
        return float(np.mean([reading.centroid_z_mm for reading in self.readers]))
