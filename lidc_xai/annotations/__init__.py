"""Radiologists' annotations of LIDC-IDRI: readings, nodules, named cohorts. No torch, no pixels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.annotations.cohort import COHORTS, cohort_exclusions, select_cohort
    from lidc_xai.annotations.nodule import Contour, Nodule, Reading
    from lidc_xai.annotations.source import get_nodules, load_nodules
    from lidc_xai.annotations.tables import (
        ROW_COLUMNS,
        VOTE_COLUMNS,
        nodule_row,
        nodule_table,
        nodule_votes,
        p_calcified,
        votes_table,
    )
    from lidc_xai.annotations.write_xml import write_reader_xml

_WHERE = {
    "COHORTS": "cohort",
    "cohort_exclusions": "cohort",
    "select_cohort": "cohort",
    "Contour": "nodule",
    "Nodule": "nodule",
    "Reading": "nodule",
    "get_nodules": "source",
    "load_nodules": "source",
    "ROW_COLUMNS": "tables",
    "VOTE_COLUMNS": "tables",
    "nodule_row": "tables",
    "nodule_table": "tables",
    "nodule_votes": "tables",
    "p_calcified": "tables",
    "votes_table": "tables",
    "write_reader_xml": "write_xml",
}

__all__ = [
    "COHORTS",
    "ROW_COLUMNS",
    "VOTE_COLUMNS",
    "Contour",
    "Nodule",
    "Reading",
    "cohort_exclusions",
    "get_nodules",
    "load_nodules",
    "nodule_row",
    "nodule_table",
    "nodule_votes",
    "p_calcified",
    "select_cohort",
    "votes_table",
    "write_reader_xml",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
