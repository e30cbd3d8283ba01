"""``prepare_dicom``: a folder of DICOM series in, a store of nodule crops out; each CT is read once for its nodules.

Scans run in parallel, one in memory per worker: 4 bytes per voxel (262 MB for 512 x 512 x 250) and about 250 MB of
libraries. A nodule's folder appears whole or not at all, so the same command continues a killed run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from joblib import Parallel, delayed, parallel_config

from lidc_xai.annotations import load_nodules, select_cohort
from lidc_xai.annotations.cohort import cohorts_of
from lidc_xai.annotations.database import database_scans
from lidc_xai.annotations.nodule import Nodule
from lidc_xai.annotations.tables import nodule_row, nodule_votes
from lidc_xai.errors import DataError, DependencyError, LidcXaiError, UsageError, reason_of
from lidc_xai.imaging.crops.crop import CropOptions
from lidc_xai.imaging.ct.dicom_index import FolderIndex, SeriesFiles, indexed
from lidc_xai.imaging.ct.reading import read_series
from lidc_xai.imaging.ct.volume import AIR_HU
from lidc_xai.imaging.store.crop_store import StoreWriter
from lidc_xai.progress import say, track
from lidc_xai.skipped import ABSENT, Skipped

_CONNECT_S = 15


@dataclass
class PrepareResult:
    """What a run of prepare did: nodules written now, nodules that were already there, rows of ``skipped.csv``.

    ``seconds``: time of all workers, by part (read, resample, write).
    """

    store: Path
    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "resample": 0.0, "write": 0.0})

    def add(self, part: PrepareResult) -> None:
        """Count what a worker did."""
        self.written += part.written
        self.kept += part.kept
        self.skipped += part.skipped
        for name, seconds in part.seconds.items():
            self.seconds[name] += seconds

    def close(self, writer: StoreWriter) -> None:
        """Finish the store, its ``skipped.csv`` included, and put the lists in order."""
        for row in self.skipped:
            writer.skip(row.nodule_id, row.stage, row.reason)
        writer.finish()
        self.written.sort()
        self.skipped = sorted(set(self.skipped))


@dataclass
class _Scan:
    """One unit of work: a series with its nodules. Small, so that it travels to other processes and machines."""

    files: SeriesFiles
    damaged: list[tuple[Path, str]]
    nodules: list[Nodule]


def prepare_dicom(
    dicom_dir: Path | str,
    out: Path | str,
    cohort: str | None = None,
    size_mm: float = 32.0,
    spacing_mm: float = 1.0,
    jobs: int = 1,
    *,
    interpolation: str = "linear",
    padding_hu: float = AIR_HU,
    cluster: str | None = None,
) -> PrepareResult:
    """Cut the nodules of all annotated CT series under ``dicom_dir`` (a folder or a zip) into the store ``out``.

    ``cohort``: a name of :data:`~lidc_xai.annotations.COHORTS`, or ``None`` for every group of the series found.
    ``jobs``: worker processes (−1: one per core). ``cluster``: address of a Dask scheduler instead; its workers must
    see the same paths. Every nodule that is not written is a row of ``skipped.csv`` with its reason.
    Raises UsageError for a missing folder, a folder without DICOM, an unknown cohort or option, or a store made by
    another rule; DataError where there is no CT series.

    >>> result = prepare_dicom(dicom, folder / "prepared")
    >>> CropStore(folder / "prepared").nodule_ids
    ['LIDC-IDRI-0475-s1-n0']
    """
    options = CropOptions(size_mm, spacing_mm, interpolation, padding_hu)
    check_jobs(jobs)
    with indexed(Path(dicom_dir).resolve(), jobs) as index:
        if not index.ct:
            raise DataError(f"{dicom_dir}: has no CT series (found {index.modalities() or 'damaged files only'})")
        for words in index.passed_over():
            say(words)
        return _prepare(index, Path(out), options, cohort, jobs, cluster)


def check_jobs(jobs: int) -> None:
    """``UsageError`` for what is no number of worker processes."""
    if jobs == 0 or jobs < -1:
        raise UsageError(f"jobs = {jobs}: give the number of worker processes, or -1 for one per core")


def _prepare(
    index: FolderIndex, out: Path, options: CropOptions, cohort: str | None, jobs: int, cluster: str | None
) -> PrepareResult:
    plan = plan_nodules(index, cohort)
    rule = {"source": "dicom", "cohort": cohort or "all nodules of the series found", **options.rule()}
    writer = StoreWriter(out.resolve(), size_mm=options.size_mm, spacing_mm=options.spacing_mm, rule=rule)
    result = PrepareResult(writer.path)
    scans = []
    for uid, nodules in plan.nodules.items():
        result.kept += [nodule.nodule_id for nodule in nodules if writer.done(nodule.nodule_id)]
        left = [nodule for nodule in nodules if not writer.done(nodule.nodule_id)]
        if left:
            files = index.ct[uid]
            scans.append(_Scan(files, index.damaged_beside(files.paths), left))
    say(f"{len(index.ct)} CT series, {sum(map(len, plan.nodules.values()))} nodules, {len(result.kept)} already done")
    result.skipped += plan.skipped
    with nullcontext() if cluster is None else _dask(cluster):
        pool = Parallel(n_jobs=jobs if cluster is None else -1, batch_size=1, return_as="generator_unordered")
        work = pool(delayed(_prepare_scan)(writer, options, scan) for scan in scans)
        for done in track(work, "cutting scans", total=len(scans)):
            result.add(done)
    result.close(writer)
    return result


def _prepare_scan(writer: StoreWriter, options: CropOptions, scan: _Scan) -> PrepareResult:
    """Read one CT and cut all its nodules; a nodule or scan that cannot be used becomes a skipped row."""
    done = PrepareResult(writer.path)
    start = perf_counter()
    try:
        ct = read_series(scan.files, scan.damaged)
    except Exception as error:  # whatever it is, it concerns this scan alone
        done.skipped += [Skipped(nodule.nodule_id, "read", reason_of(error)) for nodule in scan.nodules]
        return done
    done.seconds["read"] = perf_counter() - start
    for nodule in scan.nodules:
        start = perf_counter()
        try:
            crop = options.cut(ct, nodule)
            middle = perf_counter()
            cohorts = "" if ct.simulated else " ".join(cohorts_of(nodule))
            row = nodule_row(nodule) | {"simulated": ct.simulated, "scanner": ct.scanner, "cohorts": cohorts}
            writer.write(crop, row, nodule_votes(nodule))
        except Exception as error:  # whatever it is, it concerns this nodule alone
            done.skipped.append(Skipped(nodule.nodule_id, "crop", reason_of(error)))
            continue
        done.written.append(nodule.nodule_id)
        done.seconds["resample"] += middle - start
        done.seconds["write"] += perf_counter() - middle
    return done


@contextmanager
def _dask(address: str) -> Iterator[None]:
    """Make joblib use the Dask scheduler at ``address`` inside this block."""
    try:
        from distributed import Client
    except ImportError as error:
        raise DependencyError("--cluster needs dask.distributed: install the extra with: lidc-xai[cluster]") from error
    try:
        client = Client(address, timeout=_CONNECT_S)
    except (OSError, ValueError, TimeoutError) as error:
        raise UsageError(f"--cluster {address}: no Dask scheduler answers there ({error})") from error
    with client, parallel_config(backend="dask"):
        yield


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
