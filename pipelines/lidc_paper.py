"""The main job: the models of arXiv 2312.02364 on LIDC-IDRI, their CDAM maps, and how they compare with the published.

    python pipelines/lidc_paper.py --dicom /data/LIDC-IDRI --weights /data/weights --out runs/paper
    python pipelines/lidc_paper.py --slices slices.zip --hu png_hu.csv --weights /data/weights --out runs/paper
    python pipelines/lidc_paper.py --store runs/store --weights /data/weights --out runs/paper \\
        --backbones dinov2_vits14 --limit 200 --epochs 2

Crops of the cohort, then for each backbone malignancy and the eight biomarkers, each by both protocols (patients apart,
and the paper's folds by nodule, which leak), CDAM per output, a report, and OUT/comparison.html (.csv) beside the
published figures. ``--weights DIR`` holds a file or folder per backbone: its own name (dino_vits8.pth, .safetensors) or
the publisher's; without it they are fetched. What is missing or fails is a row that says why. The same command goes on
where it was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field
from studies.published import CDAM_PAPER, published

from lidc_xai.commands.common import need_out, need_path, pick_device, words
from lidc_xai.commands.report import ReportConfig, report
from lidc_xai.commands.script import run_script
from lidc_xai.commands.training import CrossValidateConfig
from lidc_xai.config import Config, load_config
from lidc_xai.csv_files import write_csv
from lidc_xai.errors import LidcXaiError, StorageError, UsageError
from lidc_xai.files import write_text
from lidc_xai.imaging import CropStore, prepare_dicom, prepare_png
from lidc_xai.models import BACKBONES
from lidc_xai.progress import say
from lidc_xai.reporting.pages import environment
from lidc_xai.run import Run
from lidc_xai.skipped import Skipped
from lidc_xai.training import cross_validate

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
TASKS = ("malignancy", "biomarkers")
PROTOCOLS = ("patient", "paper")
WORDS = {"patient": "patients apart, epoch chosen on a validation part", "paper": "as published: leaks"}
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", "")
SHORT = {"accuracy": "ACC", "mse": "MSE"}


class PaperJob(Config):
    """What to run."""

    dicom: Path | None = Field(None, description="Folder of LIDC-IDRI's DICOM series; crops go to OUT/store.")
    slices: Path | None = Field(None, description="Or the PNG edition of LIDC-IDRI: its zip or folder.")
    hu: Path | None = Field(None, description="With --slices: CSV of known HU lines.")
    store: Path | None = Field(None, description="Or a store made by prepare.")
    weights: Path | None = Field(None, description="Folder with a weights file per backbone; fetched without it.")
    backbones: list[str] = Field(
        ["dino_vits8", "deit_base", "dinov2_vitb14_reg", "swag_vitb16"], description="Names, separated by commas."
    )
    cohort: str = Field("paper854", description="Nodules to split and test, where the store has any of it.")
    limit: int | None = Field(None, ge=4, description="Only so many nodules, both classes alike.")
    epochs: int | None = Field(None, ge=1, description="Instead of the paper's 50 or 35.")
    folds: int = Field(5, ge=2, description="Number of folds.")
    size: int | None = Field(None, ge=8, description="Side of the input in pixels; 224, and SWAG its own.")
    shown: int = Field(12, ge=0, description="Nodules in each report, with their CDAM maps.")
    jobs: int = Field(1, ge=1, description="Processes that cut crops.")
    pdf: bool = Field(False, description="Also write the reports as PDF.")


@dataclass(frozen=True)
class Cell:
    """One training of the comparison."""

    backbone: str
    task: str
    protocol: str

    @property
    def family(self) -> str:
        """dino, deit, dinov2 or swag: what the published figures and the configurations go by."""
        return next((name for name in ("dinov2", "dino", "deit", "swag") if self.backbone.startswith(name)), "")

    @property
    def config(self) -> Path:
        """The paper's protocol of this family (SWAG and others: appendix A.5.2's)."""
        family = self.family if self.family in ("dino", "deit", "dinov2") else "deit"
        return CONFIGS / f"paper_{self.task}_{family}.yaml"


def run_paper(job: PaperJob, run: Run) -> None:
    """Prepare, train every cell, report, compare."""
    out = need_out(job)
    store = _chosen(_store(job, out, run), job)
    say(f"{len(store)} nodules of {store.manifest['patient_id'].nunique()} patients")
    rows: list[dict[str, Any]] = []
    for cell in _cells(job):
        rows.append({"backbone": cell.backbone, "task": cell.task, "protocol": cell.protocol})
        try:
            rows[-1] |= {"status": "not done", **_train(cell, job, store, out)}
            if cell.protocol == "patient" and job.shown:
                _report(cell, job, store, out, run)
            rows[-1]["status"] = "done"
        except StorageError:
            raise
        except LidcXaiError as error:
            rows[-1]["status"] = str(error)
            run.skipped.append(Skipped(f"{cell.backbone}/{cell.task}-{cell.protocol}", "lidc_paper", str(error)))
        _compare(rows, store, out)
    run.results = {"done": sum(row["status"] == "done" for row in rows), "rows": len(rows)}
    print(out / "comparison.html")


def _cells(job: PaperJob) -> Iterator[Cell]:
    for backbone in words(job.backbones):
        for task in TASKS:
            for protocol in PROTOCOLS:
                yield Cell(backbone, task, protocol)


def _store(job: PaperJob, out: Path, run: Run) -> CropStore:
    if sum(source is not None for source in (job.dicom, job.slices, job.store)) != 1:
        raise UsageError("give one of --dicom DIR (LIDC-IDRI), --slices ZIP (its PNG edition) and --store STORE")
    if job.hu is not None and job.slices is None:
        raise UsageError("--hu goes with --slices: DICOM and stores have their HU")
    if job.store is not None:
        return CropStore(need_path(job.store, "--store"))
    if job.slices is not None:
        source, lines = need_path(job.slices, "--slices"), need_path(job.hu, "--hu") if job.hu else None
        result = prepare_png(source, out / "store", cohort=job.cohort, jobs=job.jobs, hu=lines)
    else:
        result = prepare_dicom(need_path(job.dicom, "--dicom"), out / "store", cohort=job.cohort, jobs=job.jobs)
    run.skipped += result.skipped
    return CropStore(out / "store")


def _chosen(store: CropStore, job: PaperJob) -> CropStore:
    """The cohort's nodules (all labelled ones of a store that has none, as of simulated CT), at most ``limit``."""
    table = store.manifest
    inside = table["cohorts"].str.split().map(lambda names: job.cohort in names)
    table = table[inside] if inside.any() else table[table["label"].notna()]
    if job.limit is not None and job.limit < len(table):
        each = [
            part.sample(min(job.limit // 2, len(part)), random_state=job.seed) for _, part in table.groupby("label")
        ]
        table = pd.concat(each)
    return store.only(table["nodule_id"])


def _weights(backbone: str, folder: Path | None) -> str:
    """The file or folder of a backbone's weights; UsageError, which becomes a row, where the folder has none."""
    if folder is None:
        return "pretrained"
    url = BACKBONES[backbone].official_url if backbone in BACKBONES else None
    names = [f"{backbone}{suffix}" for suffix in SUFFIXES] + ([url.rsplit("/", 1)[-1]] if url else [])
    file = next((folder / name for name in names if (folder / name).exists()), None)
    if file is None:
        raise UsageError(f"{folder / names[0]}: no such weights file (nor {', '.join(names[1:4])}); put it there")
    return str(file)


def _train(cell: Cell, job: PaperJob, store: CropStore, out: Path) -> dict[str, Any]:
    weights = _weights(cell.backbone, None if job.weights is None else need_path(job.weights, "--weights"))
    fit = load_config(CrossValidateConfig, cell.config).fit
    size = job.size or (BACKBONES[cell.backbone].input_size if cell.family == "swag" else fit.model.size)
    model = fit.model.model_copy(update={"backbone": cell.backbone, "weights": weights, "size": size})
    options = fit.model_copy(
        update={
            "model": model, "seed": job.seed, "device": pick_device(job.device),
            **({"epochs": job.epochs} if job.epochs else {}),
        }
    )  # fmt: skip
    say(f"{cell.backbone}, {cell.task}, {WORDS[cell.protocol]}")
    validated = cross_validate(
        store, _folder(cell, out), options=options, n_folds=job.folds, kind=cell.protocol, final=False
    )
    return _figures(validated.metrics, cell.task)


def _figures(metrics: dict[str, Any], task: str) -> dict[str, Any]:
    figures: dict[str, Any] = {"nodules": metrics["nodules"], "patients": metrics["patients"]}
    parts = {"": metrics["malignancy"]["all"] if task == "malignancy" else metrics["biomarkers"]["mean"]}
    if task == "malignancy":
        parts["diameter_"] = metrics["baselines"]["diameter_only"]["malignancy"]["all"]
    for prefix, held in parts.items():
        for name in ("accuracy", "auc", "ece", "mse_z"):
            if name in held:
                figures |= {f"{prefix}{name}{end}": held[name][end[1:] or "value"] for end in ("", "_low", "_high")}
    return figures


def _folder(cell: Cell, out: Path) -> Path:
    return out / "models" / cell.backbone / f"{cell.task}-{cell.protocol}"


def _report(cell: Cell, job: PaperJob, store: CropStore, out: Path, run: Run) -> None:
    """CDAM per output and the pages of a few nodules, each by the fold that never saw its patient."""
    folder = out / "reports" / cell.backbone / cell.task
    if (folder / "index.html").is_file():
        return
    report(
        ReportConfig(
            store=store.path, model=str(_folder(cell, out)), out=folder, nodule=store.nodule_ids, limit=job.shown,
            method=["cdam"], controls=False, curves=[], pdf=job.pdf, device=job.device, seed=job.seed,
        ),
        run,
    )  # fmt: skip


def printed(cell: Cell) -> str:
    """What the paper prints of the backbone and task (of some backbones it prints the best alone), with its place."""
    known = published()
    known = known[(known["source"] == CDAM_PAPER) & (known["model"] == cell.family) & (known["method"] == cell.task)]
    return "; ".join(f"{SHORT[row.metric]} {row.value:g} ({row.table}, {row.note})" for row in known.itertuples())


def _compare(rows: list[dict[str, Any]], store: CropStore, out: Path) -> None:
    """OUT/comparison.csv and .html: one row per training, what was published beside it."""
    table = pd.DataFrame(rows)
    cells = [Cell(row["backbone"], row["task"], row["protocol"]) for row in rows]
    table["published"] = [printed(cell) for cell in cells]
    write_csv(out / "comparison.csv", table)
    shown = pd.DataFrame(
        {
            "Backbone": table["backbone"],
            "Learned": table["task"],
            "Protocol": table["protocol"].map(WORDS),
            "Accuracy": [_with_interval(row, "accuracy") for row in rows],
            "AUC": [_with_interval(row, "auc") for row in rows],
            "Accuracy, readers' diameter only": [_with_interval(row, "diameter_accuracy") for row in rows],
            "AUC, diameter only": [_with_interval(row, "diameter_auc") for row in rows],
            "Mean MSE(z)": [_with_interval(row, "mse_z") for row in rows],
            "arXiv 2312.02364": table["published"],
            "State": table["status"],
        }
    )
    page = environment().from_string(_PAGE)
    write_text(out / "comparison.html", page.render(rows=shown.to_dict("records"), columns=list(shown), store=store))


def _with_interval(row: dict[str, Any], name: str) -> str:
    value, low, high = (row.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return ""
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


_PAGE = """{% extends "base.html.j2" %}
{% block title %}LIDC-IDRI: models of arXiv 2312.02364{% endblock %}
{% block main %}
<h1>The paper's models, as published and with patients apart</h1>
<p>{{ store | length }} nodules of {{ store.manifest.patient_id.nunique() }} patients
{%- if store.manifest.simulated.any() %} <strong>(simulated CT: of no value on real scans)</strong>{% endif %}.
Values with 95 % intervals by patient. The published protocol puts half of the test nodules' patients into training
and chooses the epoch on the test fold; published figures have no interval (about ± .020 for an accuracy of 854
nodules).</p>
<div class="scroll"><table><thead><tr>
{% for name in columns %}<th scope="col">{{ name }}</th>{% endfor %}
</tr></thead><tbody>
{% for row in rows %}<tr>{% for name in columns %}<td>{{ row[name] }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endblock %}
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("lidc_paper", PaperJob, run_paper, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
