"""The report of a study: one page with every nodule, and a page per nodule behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from joblib import Parallel, delayed

from lidc_xai.errors import DependencyError, LidcXaiError, StorageError, UsageError
from lidc_xai.files import write_text
from lidc_xai.progress import say, stop_workers, track
from lidc_xai.reporting import glossary
from lidc_xai.reporting.nodule.drawing import thumbnail
from lidc_xai.reporting.nodule.facts import shown_info
from lidc_xai.reporting.nodule.page import write_nodule
from lidc_xai.reporting.nodule.words import reads_words, repeats_of
from lidc_xai.reporting.pages import render
from lidc_xai.reporting.parts import MapsByMethod, NoduleParts, ReportParts, origin_of
from lidc_xai.reporting.pdf import load_weasyprint
from lidc_xai.reporting.scans import Scans
from lidc_xai.skipped import Skipped, write_skipped

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.reporting.nodule.fact_types import Origin

MANY = 50
"""From this many nodules on, pages leave out what only enlarges them."""


@dataclass(frozen=True)
class ReportResult:
    """What a report wrote: ``index`` (the page to open), all ``paths``, and what was left out."""

    index: Path
    paths: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def study_report(
    store: CropStore,
    out: Path | str,
    predictions: pd.DataFrame | None = None,
    maps: MapsByMethod | None = None,
    model_info: Mapping[str, Any] | None = None,
    run_info: Mapping[str, Any] | None = None,
    *,
    performance: Mapping[str, Any] | None = None,
    dicom: Path | str | None = None,
    nodule_ids: Sequence[str] | None = None,
    title: str = "Lung nodules: what the model reads and why",
    pdf: bool = True,
    jobs: int = 1,
    light: bool | None = None,
    **parts: Any,
) -> ReportResult:
    """Write ``out/index.html`` and ``out/nodules/<id>.{html,json,pdf}``.

    predictions, maps, model_info, run_info and ``parts`` (curves, dense, anchors, similar, turning, summary, paper,
    keep_ids): the fields of ``ReportParts``; all optional, and what is missing is said on the pages.
    performance: output -> figure -> value or ``{"value", "low", "high"}``, for the study page.
    dicom: the folder with the scans, for a context of 72 mm around each crop. nodule_ids: those to show (all by
    default). jobs: processes. light: smaller pages (by default from ``MANY`` nodules).

    A nodule that cannot be shown is listed on the page and in ``skipped.csv``; so is a PDF that the system cannot make.

    >>> study_report(store, folder / "study", nodule_ids=store.nodule_ids[:1], pdf=False).index.name
    'index.html'
    """
    out, ids = Path(out), wanted_ids(store, nodule_ids)
    parts |= {"predictions": predictions, "maps": maps, "model_info": model_info, "run_info": run_info, "light": light}
    made_from = parts_of_study(store, ids, dicom, parts)
    pages = write_pages(store, ids, out / "nodules", made_from, pdf=pdf, jobs=jobs, study_link="../index.html")
    index = out / "index.html"
    words = glossary.write_glossary(out)
    write_text(index, study_page(title, pages, performance, model_info, run_info, origin=origin_of(store)))
    write_skipped(out, pages.skipped)
    return ReportResult(index, [index, *pages.paths, words], pages.skipped)


def parts_of_study(
    store: CropStore, ids: Sequence[str], dicom: Path | str | None, parts: Mapping[str, Any]
) -> ReportParts:
    """``ReportParts`` of what was given (None: nothing), with the context that ``dicom`` gives; light of ``MANY``."""
    context = None if dicom is None else partial(Scans(dicom).context, store)
    given = {name: value for name, value in parts.items() if value is not None}
    return ReportParts(**{"light": len(ids) >= MANY, "context": context, **given})


@dataclass
class Pages:
    """Nodule pages that were written, what was left out, and per page the ``rows`` that tables and galleries show."""

    paths: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


def write_pages(
    store: CropStore, ids: Sequence[str], folder: Path, parts: ReportParts, *, pdf: bool, jobs: int, study_link: str
) -> Pages:
    """Write the pages of some nodules into ``folder``, in ``jobs`` processes; each row links to its page."""
    pages = Pages()
    stop_workers()  # those of another step would take the first page's memory for a leak, and stop with a warning
    pdf = pdf and _pdf_possible(pages.skipped)
    collected = _collected(store, ids, parts, pages.skipped)
    work = (
        delayed(_one)(store, name, folder, nodule, pdf, _links(ids, name, study_link)) for name, nodule in collected
    )
    for files, left_out, row in track(Parallel(n_jobs=jobs, return_as="generator")(work), "report", len(ids)):
        pages.paths += files
        pages.skipped += left_out
        if row is not None:
            pages.rows.append(row)
    return pages


def _links(ids: Sequence[str], nodule_id: str, study: str) -> dict[str, str]:
    """Addresses of a page's neighbours, in the order of the table."""
    place = ids.index(nodule_id)
    links = {"study": study, "glossary": f"../{glossary.FILE}"}
    if place > 0:
        links["previous"] = f"{ids[place - 1]}.html"
    if place + 1 < len(ids):
        links["next"] = f"{ids[place + 1]}.html"
    return links


def _collected(
    store: CropStore, ids: Sequence[str], parts: ReportParts, skipped: list[Skipped]
) -> Iterator[tuple[str, NoduleParts]]:
    """Each nodule's parts, as the workers ask for them: only a few are in memory at a time."""
    for nodule_id in ids:
        try:
            yield nodule_id, parts.of(store, nodule_id)
        except StorageError:
            raise
        except LidcXaiError as error:
            skipped.append(Skipped(nodule_id, "report", str(error)))


def study_page(
    title: str,
    pages: Pages,
    performance: Mapping[str, Any] | None,
    model_info: Mapping[str, Any] | None,
    run_info: Mapping[str, Any] | None,
    back: str = "",
    origin: Origin = "lidc",
) -> str:
    """HTML of the page with the table of nodules; ``back``: address of a page above it."""
    return render(
        "study.html.j2",
        glossary=glossary.FILE,
        title=title,
        rows=pages.rows,
        n_patients=len({row["patient_id"] for row in pages.rows}),
        simulated=any(row["simulated"] for row in pages.rows),
        edited=any(row["edited"] for row in pages.rows),
        any_prediction=any(output["prediction"] for row in pages.rows for output in row["outputs"]),
        no_nodule=next((row["no_nodule"] for row in pages.rows if row["no_nodule"]), ""),
        trained_on=sum(row["status"] == "trained_on" for row in pages.rows),
        performance=performance_lines(performance),
        skipped=sorted(pages.skipped),
        model_info=shown_info(model_info),
        run_info=dict(run_info or {}),
        reads=reads_words(model_info),
        origin=origin,
        back=back,
        interactive=True,
    )


def performance_lines(performance: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Nested figures as lines for a table: ``output``, ``figure``, ``value``, ``low``, ``high``."""
    lines = []
    for output, figures in (performance or {}).items():
        if not isinstance(figures, Mapping):
            continue
        for figure, value in figures.items():
            given = value if isinstance(value, Mapping) else {"value": value}
            if isinstance(given.get("value"), (int, float)):
                lines.append({"low": None, "high": None, **given, "output": output, "figure": figure})
    return lines


def wanted_ids(store: CropStore, nodule_ids: Sequence[str] | None) -> list[str]:
    """The ids to show: all of the store's by default; UsageError names the first unknown one."""
    ids = list(store.nodule_ids if nodule_ids is None else nodule_ids)
    unknown = sorted(set(ids) - set(store.nodule_ids))
    if unknown:
        raise UsageError(f"nodule {unknown[0]!r} is not in {store.path}; its {len(store)} ids are in manifest.csv")
    return ids


def _pdf_possible(skipped: list[Skipped]) -> bool:
    try:
        load_weasyprint()
    except DependencyError as error:
        say(str(error))
        skipped.append(Skipped("", "pdf", str(error)))
        return False
    return True


def _one(
    store: CropStore, nodule_id: str, folder: Path, parts: NoduleParts, pdf: bool, links: Mapping[str, str]
) -> tuple[list[Path], list[Skipped], dict[str, Any] | None]:
    try:
        paths, skipped, facts = write_nodule(store, nodule_id, folder, parts, pdf=pdf, links=links)
        picture = thumbnail(parts.crop)
    except StorageError:
        raise
    except LidcXaiError as error:
        return [], [Skipped(nodule_id, "report", str(error))], None
    repeats = repeats_of(facts, "malignancy")
    row = {
        "nodule_id": nodule_id,
        "patient_id": str(store.row(nodule_id)["patient_id"]),  # who is drawn together; not printed
        "pdf": f"nodules/{nodule_id}.pdf" if any(path.suffix == ".pdf" for path in paths) else "",
        "trust": {name: verdict["level"] for name, verdict in facts["trust"].items()},
        "link": f"nodules/{nodule_id}.html",
        "picture": picture,
        "flags": facts["flags"],
        "status": facts["independence"]["status"],
        "simulated": facts["simulated"],
        "edited": facts["edited"],
        "outputs": facts["outputs"],
        "no_nodule": facts["no_nodule"],
        "overlap": facts["overlap"],
        "label": facts["label"],
        "agreement": None if repeats is None else repeats["expected"],
    }
    return paths, skipped, row
