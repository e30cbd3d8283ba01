"""The demo: simulated patients as DICOM -> crops -> model -> predictions and maps -> report, in one go.

A dozen patients become full DICOM series and take the way of real ones (read, matched, cropped); a few hundred further
nodules are simulated as crops to train on. Patients are split apart: training, validation, held out. The held-out
figures are reported whatever they are, beside those of the diameter alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lidc_xai.files import write_json
from lidc_xai.progress import say

if TYPE_CHECKING:
    import pandas as pd

    from lidc_xai.annotations import Nodule
    from lidc_xai.evaluation.statistics import Interval
    from lidc_xai.imaging.store.crop_store import CropStore
    from lidc_xai.models.nodule_model import NoduleModel
    from lidc_xai.nodules.maps import NoduleMaps

CHANCE = 0.5
SHOWN = {
    "auc": "AUC on held-out patients",
    "diameter_auc": "AUC of the readers' diameter alone",
    "difference": "difference of the two (paired)",
    "accuracy": "accuracy",
}
MOST_NODULES = 3
"""DICOM patients have at most this many nodules, so that their series stay short."""


@dataclass(frozen=True)
class DemoPlan:
    """How much of everything; the default takes a few minutes on two cores."""

    dicom_patients: int = 12
    held_out: int = 100
    validation: int = 50
    training: int = 280
    epochs: int = 20
    methods: tuple[str, ...] = ("cdam", "attention")

    def tiny(self) -> DemoPlan:
        """Enough to see every step work, too little to learn from: for tests."""
        return replace(self, dicom_patients=2, held_out=8, validation=6, training=12, epochs=1)

    def limited(self, epochs: int | None, limit: int | None) -> DemoPlan:
        """With so many epochs, and at most ``limit`` training nodules and DICOM patients.

        >>> DemoPlan().limited(epochs=3, limit=100).training
        100
        """
        most = limit or self.training
        return replace(
            self,
            epochs=epochs or self.epochs,
            training=min(self.training, most),
            dicom_patients=min(self.dicom_patients, most),
        )


@dataclass(frozen=True)
class Parts:
    """Nodules by what they are for; no patient is in two parts."""

    dicom: list[Nodule]
    held_out: list[Nodule]
    validation: list[Nodule]
    training: list[Nodule]


@dataclass(frozen=True)
class DemoResult:
    """The report's index page, the held-out figures, and the same in words."""

    index: Path
    figures: dict[str, Any]
    lines: list[str]


def choose_parts(plan: DemoPlan, seed: int) -> Parts:
    """Draw patients for each part in turn: whole scans of few nodules for DICOM, nodules of ``all862`` for the rest.

    A scan is simulated with all its nodules, also those that only one reader marked, as a real one has them.
    """
    from lidc_xai.annotations import load_nodules, select_cohort

    rated = set(select_cohort("all862")["nodule_id"])
    by_patient: dict[str, list[Nodule]] = {}
    for nodule in load_nodules():
        by_patient.setdefault(nodule.patient_id, []).append(nodule)
    cohort = {key: [one for one in nodules if one.nodule_id in rated] for key, nodules in by_patient.items()}
    names = sorted(key for key, nodules in cohort.items() if nodules)
    order = [names[place] for place in np.random.default_rng(seed).permutation(len(names))]
    whole = [name for name in order if len(by_patient[name]) <= MOST_NODULES][: plan.dicom_patients]
    left = iter(name for name in order if name not in whole)

    def take(count: int) -> list[Nodule]:
        taken: list[Nodule] = []
        while len(taken) < count:
            taken += cohort[next(left)]
        return taken

    dicom = [nodule for name in whole for nodule in by_patient[name]]
    return Parts(dicom, take(plan.held_out), take(plan.validation), take(plan.training))


def run_demo(
    out: Path, plan: DemoPlan, seed: int = 0, device: str = "auto", jobs: int = 2, pdf: bool = True
) -> DemoResult:
    """Run every step into ``out``. Steps that are done already are not repeated."""
    from lidc_xai.imaging import CropStore, prepare_dicom
    from lidc_xai.models import load_model
    from lidc_xai.nodules._predict import predict
    from lidc_xai.nodules.explained import explain_out_of_fold, shared_info
    from lidc_xai.nodules.strength import map_anchors
    from lidc_xai.reporting import study_report
    from lidc_xai.reporting.values import base_names
    from lidc_xai.run import current_argv, versions
    from lidc_xai.simulate import simulate_store
    from lidc_xai.training import FitOptions, fit

    parts = choose_parts(plan, seed)
    say(f"1/5 simulating {plan.dicom_patients} patients as DICOM, and crops to train on")
    simulated = _simulate_series(parts.dicom, out / "dicom", seed, jobs)
    prepare_dicom(out / "dicom", out / "store", jobs=jobs)
    study = CropStore(out / "store")
    crops = simulate_store(out / "crops", [*parts.training, *parts.validation, *parts.held_out], seed, jobs=jobs)
    say(f"{simulated} series; {len(study)} nodules read back from them; {len(crops)} crops")

    say("2/5 training")
    options = FitOptions.of(
        model={"backbone": "vit_nodule_p8"},
        loss={"mask_weight": 1.0},
        epochs=plan.epochs,
        batch_size=16,
        optimiser={"name": "muon", "lr": 2e-3},
        seed=seed,
        device=device,
    )
    fit(
        crops,
        out / "run",
        train_ids=_ids(parts.training, crops),
        validation_ids=_ids(parts.validation, crops),
        options=options,
        info={"simulated": True},
    )
    model = load_model(out / "run")

    say("3/5 predicting patients that the model never saw")
    predictions = predict(model, study)
    figures = held_out_figures(predict(model, crops, nodule_ids=_ids(parts.held_out, crops)), crops.manifest, seed)
    write_json(out / "held_out.json", figures)

    say("4/5 explaining every output")
    first = plan.methods[0]
    maps = explain_out_of_fold([model], study, out, study.nodule_ids, plan.methods, seed=seed).maps

    say("5/5 writing the report")
    result = study_report(
        study,
        out / "report",
        predictions=predictions,
        maps=maps,
        model_info=shared_info([model]),
        anchors={first: map_anchors(_held_out_maps(model, crops, _ids(parts.held_out, crops), first))},
        run_info={"argv": base_names(current_argv()), "seed": seed, "versions": versions()},
        dicom=out / "dicom",
        performance={"malignancy": {words: figures[name] for name, words in SHOWN.items()}},
        title="Demo: simulated lung nodules, and why the model rates them as it does",
        pdf=pdf,
        jobs=jobs,
    )
    return DemoResult(result.index, figures, in_words(figures))


def _simulate_series(nodules: Sequence[Nodule], folder: Path, seed: int, jobs: int) -> int:
    """Write one DICOM series per scan, those that are missing; returns how many there are."""
    from joblib import Parallel, delayed

    from lidc_xai.progress import track

    scans: dict[str, list[Nodule]] = {}
    for nodule in nodules:
        scans.setdefault(nodule.series_uid, []).append(nodule)
    missing = [
        members
        for uid, members in scans.items()
        if not (folder / members[0].patient_id / members[0].study_uid / uid).is_dir()
    ]
    work = (delayed(_write_series)(members, folder, seed) for members in missing)
    for _ in track(Parallel(n_jobs=jobs, return_as="generator")(work), "simulating CT series", len(missing)):
        pass
    return len(scans)


def _write_series(nodules: Sequence[Nodule], folder: Path, seed: int) -> None:
    from lidc_xai.simulate import simulate_ct, write_dicom

    write_dicom(simulate_ct(nodules, seed), folder)


def _held_out_maps(model: NoduleModel, crops: CropStore, ids: Sequence[str], method: str) -> Iterator[NoduleMaps]:
    """Maps of nodules that the model never saw: what a strong and a weak map of this model are."""
    from lidc_xai.nodules.maps import explain_nodules

    for maps in explain_nodules(model, (crops.load(name) for name in ids), [method]):
        yield maps[method]


def _ids(nodules: Sequence[Nodule], store: CropStore) -> list[str]:
    there = set(store.nodule_ids)
    return [nodule.nodule_id for nodule in nodules if nodule.nodule_id in there]


def held_out_figures(predictions: pd.DataFrame, manifest: pd.DataFrame, seed: int) -> dict[str, Any]:
    """AUC and accuracy on nodules whose patients the model never saw, with intervals clustered by patient.

    ``diameter_auc`` is what the readers' diameter alone reaches on the same nodules; ``difference`` is paired.
    """
    from lidc_xai.training.bootstrap import metric_difference, metric_interval
    from lidc_xai.training.metrics import accuracy, auc

    table = predictions.merge(manifest.drop(columns="patient_id"), on="nodule_id", suffixes=("", "_readers"))
    table = table[table["label"].notna()]
    label = table["label"].to_numpy(float)
    probability, diameter = table["malignancy_probability"].to_numpy(float), table["diameter_readers"].to_numpy(float)
    patients = table["patient_id"].tolist()
    difference = metric_difference(auc, label, probability, diameter, patients, seed=seed)
    return {
        "nodules": len(table),
        "patients": len(set(patients)),
        "meaning": "agreement with the radiologists' rating, on simulated CT",
        "auc": _figure(metric_interval(auc, label, probability, patients, seed=seed)),
        "accuracy": _figure(metric_interval(accuracy, label, probability, patients, seed=seed)),
        "diameter_auc": _figure(metric_interval(auc, label, diameter, patients, seed=seed)),
        "difference": {"value": difference.difference, "low": difference.low, "high": difference.high},
    }


def _figure(interval: Interval) -> dict[str, float | None]:
    ends = {"value": interval.mean, "low": interval.low, "high": interval.high}
    return {name: None if np.isnan(value) else float(value) for name, value in ends.items()}


def in_words(figures: dict[str, Any]) -> list[str]:
    """The held-out figures as sentences; an interval that reaches chance, or no gain over the diameter, is said."""
    lines = [
        f"held out: {figures['nodules']} nodules of {figures['patients']} patients, none seen in training",
        f"AUC {_shown(figures['auc'])}; the diameter alone {_shown(figures['diameter_auc'])}",
    ]
    if figures["auc"]["low"] is None or figures["auc"]["low"] <= CHANCE:
        lines.append("The interval of the AUC reaches .5: this model may not be better than chance.")
    if figures["difference"]["low"] <= 0:
        lines.append("The model is not shown to be better than the diameter alone.")
    return lines


def _shown(figure: dict[str, float | None]) -> str:
    value, low, high = (("–" if part is None else f"{part:.3f}") for part in figure.values())
    return f"{value} [{low}, {high}]"
