"""CT series of LIDC-IDRI from the Imaging Data Commons, through idc-index (extra ``[download]``).

The index of all series comes with the package, so that sizes are known before anything is fetched. CT alone is taken
(LIDC-IDRI also holds CR, DX and derived objects). A series' folder appears when all of its files are there, so that the
same command continues a download that was cut off. Layout as on TCIA: OUT/<patient>/<study>/<series>/.
"""

from __future__ import annotations

import logging
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lidc_xai.errors import DataError, DependencyError, UsageError
from lidc_xai.files import atomic_path, remove_half_written
from lidc_xai.progress import say, track

if TYPE_CHECKING:
    import pandas

COLLECTION = "lidc_idri"
CITATION = "LIDC-IDRI, CC BY 3.0, doi 10.7937/K9/TCIA.2015.LO9QL9SX"
ASK_ABOVE_MB = 500.0
_PROBE_URL = "https://s3.amazonaws.com/idc-open-data?list-type=2&max-keys=1"
_PROBE_SECONDS = 15


@dataclass(frozen=True)
class _Series:
    patient: str
    study: str
    uid: str
    files: int
    size_mb: float

    def folder(self, out: Path) -> Path:
        return out / self.patient / self.study / self.uid


@dataclass(frozen=True)
class DownloadResult:
    """Folders of the series that were asked for, how many of them were fetched now, and how much that was."""

    folders: list[Path]
    fetched: int
    fetched_mb: float


def download(
    patients: Sequence[str] | None,
    out: Path | str,
    *,
    cohort: str | None = None,
    yes: bool = False,
    ask: Callable[[str], bool] | None = None,
    client: Any = None,
) -> DownloadResult:
    """Fetch the CT series of ``patients`` ("LIDC-IDRI-0001" or "1"), or of a named cohort, into ``out``.

    Above 500 MB it asks first (``ask`` gets the question with number and size; on a terminal by default), unless
    ``yes``. ``client`` stands in for ``IDCClient``. Raises UsageError for unknown patients or a refused question,
    DependencyError without idc-index, DataError where the network or the disk does not allow it.
    """
    if (patients is None) == (cohort is None):
        raise UsageError("download needs either patients or a cohort; for example --patients LIDC-IDRI-0001")
    own_client = client is None
    client = _client() if own_client else client
    series = _select(client.index, patients, cohort)
    out = Path(out)
    remove_half_written(out)
    todo = [one for one in series if _files(one.folder(out)) < one.files]
    size_mb = sum(one.size_mb for one in todo)
    say(f"{len(series)} CT series, {len(series) - len(todo)} already here; to fetch: {len(todo)}, {_words(size_mb)}")
    if todo:
        _check_disk(out, size_mb)
        if size_mb > ASK_ABOVE_MB and not yes:
            _confirm(f"Fetch {len(todo)} CT series of {COLLECTION}, {_words(size_mb)}, into {out}?", ask)
        if own_client:
            _check_network()
    for one in track(todo, "series"):
        _fetch(client, one, one.folder(out))
    say(f"Cite: {CITATION}")
    return DownloadResult([one.folder(out) for one in series], len(todo), size_mb)


def _client() -> Any:
    try:
        from idc_index import IDCClient
    except ImportError as error:
        raise DependencyError(f"idc-index: not installed ({error}); run: pip install 'lidc-xai[download]'") from error
    logging.getLogger("idc_index").setLevel(logging.CRITICAL)  # its log repeats what is said here
    return IDCClient()


def _select(index: pandas.DataFrame, patients: Sequence[str] | None, cohort: str | None) -> list[_Series]:
    ct = index[(index["collection_id"] == COLLECTION) & (index["Modality"] == "CT")]
    if cohort is not None:
        from lidc_xai.annotations import select_cohort

        wanted = set(select_cohort(cohort)["series_uid"])
        chosen = ct[ct["SeriesInstanceUID"].isin(wanted)]
        absent = wanted - set(chosen["SeriesInstanceUID"])
        if absent:
            raise DataError(f"{len(absent)} series of {cohort} are not in the index of idc-index; update idc-index")
    else:
        ids = [_patient_id(text) for text in patients or ()]
        if not ids:
            raise UsageError("no patient given; for example --patients LIDC-IDRI-0001,LIDC-IDRI-0003")
        known = set(ct["PatientID"])
        unknown = [key for key in ids if key not in known]
        if unknown:
            raise UsageError(
                f"patient {unknown[0]!r} has no CT in {COLLECTION}; ids are LIDC-IDRI-0001 to LIDC-IDRI-1012"
            )
        chosen = ct[ct["PatientID"].isin(ids)]
    fields = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "instanceCount", "series_size_MB")
    columns = (chosen[field].tolist() for field in fields)
    return sorted((_Series(*row) for row in zip(*columns, strict=True)), key=lambda one: (one.patient, one.uid))


def _patient_id(text: str) -> str:
    return f"LIDC-IDRI-{int(text):04d}" if text.isdecimal() else text.strip()


def _fetch(client: Any, series: _Series, folder: Path) -> None:
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        try:
            client.download_from_selection(
                downloadDir=str(temporary),
                seriesInstanceUID=[series.uid],
                dirTemplate=None,
                quiet=True,
                show_progress_bar=False,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{series.uid}: download failed ({error}); run the same command again") from error
        got = _files(temporary)
        if got < series.files:
            raise DataError(
                f"{series.patient} series {series.uid}: {got} of {series.files} files came; "
                "check the network and run the same command again to continue"
            )


def _files(folder: Path) -> int:
    return sum(1 for path in folder.glob("*") if path.is_file()) if folder.is_dir() else 0


def _check_disk(out: Path, size_mb: float) -> None:
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    free_mb = shutil.disk_usage(there).free / 1e6
    if free_mb < size_mb:
        raise DataError(f"{out}: {_words(size_mb)} needed, {_words(free_mb)} free; choose another --out")


def _check_network() -> None:
    """One short request: without a network, the downloader itself takes two minutes to give up."""
    try:
        urllib.request.urlopen(_PROBE_URL, timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return  # an answer is an answer
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise DataError(
            f"the Imaging Data Commons cannot be reached ({reason}); open the network to s3.amazonaws.com, or copy the "
            "series here by hand"
        ) from error


def _confirm(question: str, ask: Callable[[str], bool] | None) -> None:
    if ask is None and not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is there to answer; add --yes")
    if not (ask or _ask_on_terminal)(question):
        raise UsageError(f"{question} Answered no; nothing was fetched")


def _ask_on_terminal(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _words(size_mb: float) -> str:
    return f"{size_mb / 1000:.1f} GB" if size_mb >= 1000 else f"{size_mb:.0f} MB"
