"""Which nodules belong to which CT series of a folder: the database where it knows the series, else reader XML."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lidc_xai.annotations import load_nodules, select_cohort
from lidc_xai.annotations.database import database_scans
from lidc_xai.annotations.nodule import Nodule
from lidc_xai.errors import LidcXaiError
from lidc_xai.imaging.ct.dicom_index import FolderIndex
from lidc_xai.skipped import ABSENT, Skipped


@dataclass
class Plan:
    """Nodules to cut, by series, and what is known beforehand not to be cut."""

    nodules: dict[str, list[Nodule]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)


def plan_nodules(index: FolderIndex, cohort: str | None = None) -> Plan:
    """Match every CT series of ``index`` to its nodules by SeriesInstanceUID.

    Without ``cohort``: all groups of the series found. With a cohort: its nodules alone, and a skipped row for each
    one whose series is not in the folder. A CT series that nobody has annotated, and damaged files that belong to no
    series, are skipped rows too.
    """
    wanted = None if cohort is None else list(select_cohort(cohort)["nodule_id"])
    plan = Plan(skipped=_lost_files(index))
    by_series: dict[str, list[Nodule]] = defaultdict(list)
    for nodule in load_nodules():
        by_series[nodule.series_uid].append(nodule)
    known = {scan.series_uid for scan in database_scans().values()}
    for uid, files in index.ct.items():
        if uid in known:
            plan.nodules[uid] = by_series[uid]
        elif cohort is None:
            nodules, lost = _from_xml(uid, files.paths)
            plan.nodules[uid] = nodules
            plan.skipped += lost
    if wanted is not None:
        plan.nodules = {
            uid: [one for one in nodules if one.nodule_id in set(wanted)] for uid, nodules in plan.nodules.items()
        }
        present = {one.nodule_id for nodules in plan.nodules.values() for one in nodules}
        reason = f"its series is not among the {len(index.ct)} CT series of {index.folder}"
        plan.skipped += [Skipped(nodule_id, ABSENT, reason) for nodule_id in wanted if nodule_id not in present]
    plan.nodules = {uid: nodules for uid, nodules in plan.nodules.items() if nodules}
    return plan


def _from_xml(series_uid: str, paths: Iterable[Path]) -> tuple[list[Nodule], list[Skipped]]:
    """Nodules of reader XML that lies beside the files of a series the database does not have."""
    for folder in sorted({path.parent for path in paths}):
        for xml in sorted(folder.glob("*.[xX][mM][lL]")):
            if series_uid.encode() not in xml.read_bytes():
                continue
            try:
                return [one for one in load_nodules(xml) if one.series_uid == series_uid], []
            except LidcXaiError as error:
                return [], [Skipped(series_uid, "annotations", str(error))]
    reason = "CT series is not in the annotation database and no reader XML of it lies beside its files"
    return [], [Skipped(series_uid, "match", reason)]


def _lost_files(index: FolderIndex) -> list[Skipped]:
    """Damaged files in folders where no series was found: one row per folder."""
    with_series = {path.parent for series in index.series.values() for path in series.paths}
    lost: dict[Path, list[tuple[Path, str]]] = defaultdict(list)
    for path, reason in index.damaged:
        if path.parent not in with_series:
            lost[path.parent].append((path, reason))
    return [
        Skipped(
            str(folder.relative_to(index.folder)), "read", f"{len(files)} file(s): {files[0][0].name}: {files[0][1]}"
        )
        for folder, files in lost.items()
    ]
