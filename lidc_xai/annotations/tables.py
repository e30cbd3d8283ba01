"""Nodules as tables: one row per nodule (summary of the readers), or one row per reading (raw votes)."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

from lidc_xai.annotations.nodule import Nodule
from lidc_xai.ratings import BIOMARKERS, CALCIFICATION_ABSENT, READER_RATINGS, malignancy_label

if TYPE_CHECKING:
    import pandas

ROW_COLUMNS = (
    "nodule_id", "patient_id", "series_uid", "scan_index", "cluster_index", "annotation_ids", "n_readers", "ambiguous",
    "is_from_initial", "label", "malignancy_median",
    *(column for name in BIOMARKERS for column in (name, f"{name}_sd")),
    "p_calcified", "centroid_i", "centroid_j", "centroid_k", "centroid_z_mm",
    "malignancy", "malignancy_sd", "internal_structure", "internal_structure_sd",
    "slice_thickness_mm", "pixel_spacing_mm", "contrast_used", "study_uid",
)  # fmt: skip
"""Columns of a cohort and of a store's manifest, in this order."""

VOTE_COLUMNS = ("nodule_id", "reader", "annotation_id", *READER_RATINGS, "diameter_mm")

_DTYPES = {"label": "Int64", "is_from_initial": "boolean", "contrast_used": "boolean"}


def nodule_row(nodule: Nodule) -> dict[str, Any]:
    """One nodule as a row with exactly the columns :data:`ROW_COLUMNS`.

    Every rating is the mean over the readers, its ``_sd`` their sample standard deviation (n − 1; NaN for one
    reader); diameter in mm; ``label`` None where the median malignancy is 3; ``annotation_ids`` a tuple of int;
    ``p_calcified`` the share of readers with a calcification code below 6; centroids are column, row, slice index.

    >>> row = nodule_row(nodule)
    >>> row["nodule_id"], row["n_readers"]
    ('LIDC-IDRI-0475-s1-n0', 4)
    """
    votes: dict[str, list[float]] = {name: [one.ratings[name] for one in nodule.readers] for name in READER_RATINGS}
    votes["diameter"] = [reading.diameter_mm for reading in nodule.readers]
    row: dict[str, Any] = {name: getattr(nodule, name) for name in ROW_COLUMNS if hasattr(nodule, name)}
    for name, values in votes.items():
        row[name] = fmean(values)
        row[f"{name}_sd"] = stdev(values) if len(values) > 1 else float("nan")
    row["annotation_ids"] = tuple(reading.annotation_id for reading in nodule.readers)
    row["label"] = malignancy_label(votes["malignancy"])
    row["malignancy_median"] = float(median(votes["malignancy"]))
    row["p_calcified"] = p_calcified(nodule)
    row["centroid_i"], row["centroid_j"], row["centroid_k"] = nodule.centroid.tolist()
    return {name: row[name] for name in ROW_COLUMNS}


def p_calcified(nodule: Nodule) -> float:
    """Share of readers who saw calcium (code below 6): codes 1 to 5 name patterns, a mean with 6 says little.

    >>> 0 <= p_calcified(nodule) <= 1
    True
    """
    return fmean(reading.ratings["calcification"] < CALCIFICATION_ABSENT for reading in nodule.readers)


def nodule_table(nodules: Iterable[Nodule]) -> pandas.DataFrame:
    """One row per nodule with the columns :data:`ROW_COLUMNS`; label and flags are nullable.

    >>> nodule_table([nodule])["patient_id"].tolist()
    ['LIDC-IDRI-0475']
    """
    from pandas import DataFrame

    table = DataFrame([nodule_row(nodule) for nodule in nodules], columns=list(ROW_COLUMNS))
    return table.astype(_DTYPES)


def nodule_votes(nodule: Nodule) -> list[dict[str, Any]]:
    """One dict per reading with the columns :data:`VOTE_COLUMNS`; ``reader`` counts from 1 within the nodule.

    >>> len(nodule_votes(nodule))
    4
    """
    return [
        {
            "nodule_id": nodule.nodule_id,
            "reader": number,
            "annotation_id": reading.annotation_id,
            **reading.ratings,
            "diameter_mm": reading.diameter_mm,
        }
        for number, reading in enumerate(nodule.readers, start=1)
    ]


def votes_table(nodules: Iterable[Nodule]) -> pandas.DataFrame:
    """Raw votes, one row per reading, with the columns :data:`VOTE_COLUMNS`.

    >>> len(votes_table([nodule]))
    4
    """
    from pandas import DataFrame

    return DataFrame([vote for nodule in nodules for vote in nodule_votes(nodule)], columns=list(VOTE_COLUMNS))
