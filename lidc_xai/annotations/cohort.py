"""Named cohorts: which nodules are in, which are out, and why. Every nodule of the database is one or the other.

Common rule (the code of arXiv 2312.02364's authors): the first scan of a patient, groups of three or four readers,
label 1 where the median malignancy is above 3 and 0 where it is below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from lidc_xai.annotations.database import database_nodules
from lidc_xai.annotations.nodule import MOST_READERS, Nodule
from lidc_xai.annotations.tables import nodule_table
from lidc_xai.errors import UsageError
from lidc_xai.ratings import malignancy_label
from lidc_xai.skipped import FIELDS

if TYPE_CHECKING:
    import pandas

FEWEST_READERS = 3

_DUPLICATE_Z = "slices at duplicate z positions"
_LOST_IN_CODE = {
    "LIDC-IDRI-0085-s1-n0": _DUPLICATE_Z,
    "LIDC-IDRI-0146-s1-n0": _DUPLICATE_Z,
    "LIDC-IDRI-0572-s1-n0": _DUPLICATE_Z,
    "LIDC-IDRI-0267-s1-n0": "slice positions are irregular (two steps of 0.5 mm among 2.5 mm)",
    "LIDC-IDRI-0672-s1-n0": "slices are missing (three gaps of 1.25 mm among 0.625 mm)",
    "LIDC-IDRI-0490-s1-n0": "slice spacing jitters by 1.1e-4, just above the warning threshold of ITK",
    "LIDC-IDRI-0463-s1-n0": "the 32 mm box leaves the scan",
}
_LOST_IN_PAPER = {
    **_LOST_IN_CODE,
    "LIDC-IDRI-0052-s1-n1": "not in the published table; no cause in the data (an earlier paper has it)",
}


@dataclass(frozen=True)
class Cohort:
    """A named rule: what it is for, whether indeterminate nodules stay, and nodules it leaves out by name."""

    description: str
    indeterminate: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)

    def reason_to_exclude(self, nodule: Nodule) -> str | None:
        """Why ``nodule`` is not in this cohort; ``None`` where it is."""
        if nodule.scan_index > 1:
            return f"scan {nodule.scan_index} of the patient: only the first is used"
        if nodule.n_readers < FEWEST_READERS:
            return f"{nodule.n_readers} of the 3 or 4 readers that the rule asks for"
        if nodule.n_readers > MOST_READERS:
            return f"{nodule.n_readers} readings in one group: several nodules that cannot be told apart"
        if not self.indeterminate and malignancy_label(r.ratings["malignancy"] for r in nodule.readers) is None:
            return "median malignancy is 3 (indeterminate)"
        return self.left_out.get(nodule.nodule_id)


COHORTS = MappingProxyType(
    {
        "paper854": Cohort("the published cohort: 411 malignant, 443 benign", left_out=_LOST_IN_PAPER),
        "deterministic855": Cohort("what the authors' code keeps: 412 malignant, 443 benign", left_out=_LOST_IN_CODE),
        "all862": Cohort("the rule alone, nothing lost on the way: 415 malignant, 447 benign"),
        "full1366": Cohort("the rule with the 504 indeterminate nodules kept, label empty", indeterminate=True),
    }
)


def select_cohort(name: str) -> pandas.DataFrame:
    """The nodules of a named cohort, one row each, in patient and group order (columns: ``ROW_COLUMNS``).

    Raises UsageError for a name that is not in :data:`COHORTS`.

    >>> cohort = select_cohort("paper854")
    >>> len(cohort), sorted(cohort["label"].unique().tolist())
    (854, [0, 1])
    """
    cohort = _cohort(name)
    return nodule_table(nodule for nodule in database_nodules() if cohort.reason_to_exclude(nodule) is None)


def cohorts_of(nodule: Nodule) -> tuple[str, ...]:
    """Names of the cohorts that the nodule is in."""
    return tuple(name for name, cohort in COHORTS.items() if cohort.reason_to_exclude(nodule) is None)


def cohort_exclusions(name: str) -> pandas.DataFrame:
    """Every nodule of the database that is not in the cohort: nodule_id, stage ("cohort"), reason.

    >>> gone = cohort_exclusions("paper854")
    >>> sorted(gone.columns)[:2], len(gone) > 0
    (['nodule_id', 'reason'], True)
    """
    from pandas import DataFrame

    cohort = _cohort(name)
    reasons = ((nodule.nodule_id, cohort.reason_to_exclude(nodule)) for nodule in database_nodules())
    return DataFrame([(key, "cohort", reason) for key, reason in reasons if reason is not None], columns=list(FIELDS))


def _cohort(name: str) -> Cohort:
    if name not in COHORTS:
        raise UsageError(f"cohort {name!r} is unknown; choose one of {', '.join(COHORTS)}")
    return COHORTS[name]
