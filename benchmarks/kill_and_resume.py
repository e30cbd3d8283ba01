"""Kill -9 at random moments and run the same command again: the same files as from a run that nobody killed.

    python benchmarks/kill_and_resume.py --out runs/kills --kills 21

A few simulated patients take the way of real ones; prepare, train, cross-validate, benchmark, explain, report and
export each run once in peace, then again and again with a kill of the whole process group at a moment drawn by
``--seed``.
``run.json`` (times, memory) is left out of the comparison, and of DICOM objects the date and time of their making.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pydicom
from pydantic import Field

from lidc_xai import cli
from lidc_xai.annotations import load_nodules, select_cohort
from lidc_xai.annotations.nodule import Nodule
from lidc_xai.commands.common import need_out, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import LidcXaiError, UsageError
from lidc_xai.files import write_json
from lidc_xai.run import Run
from lidc_xai.simulate import simulate_ct, simulate_store, write_dicom

VERBS = ("prepare", "train", "cross-validate", "benchmark", "explain", "report", "export")
_MADE_AT = (
    "ContentDate", "ContentTime", "InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime",
    "ContributionDateTime", "ObservationDateTime",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One verb: seconds of a run in peace, how often it was killed, its files, those that differed afterwards."""

    verb: str
    seconds: float
    kills: int
    files: int
    differing: tuple[str, ...]


def make_study(folder: Path, patients: int = 2, crops: int = 24) -> None:
    """Simulated DICOM of ``patients``, and a store of ``crops`` further nodules to learn from (0: none)."""
    rated = set(select_cohort("all862")["nodule_id"])
    by_patient: dict[str, list[Nodule]] = {}
    for nodule in load_nodules():
        by_patient.setdefault(nodule.patient_id, []).append(nodule)
    single = [nodules for nodules in by_patient.values() if len(nodules) == 1 and nodules[0].nodule_id in rated]
    if not (folder / "dicom").is_dir():
        for nodules in single[:patients]:
            write_dicom(simulate_ct(nodules, 0), folder / "dicom")
    if crops:
        simulate_store(folder / "crops", [nodules[0] for nodules in single[patients : patients + crops]], 0)


def arguments_of(verb: str, study: Path, out: Path) -> list[str]:
    """The command line of ``verb`` into ``out``, after the peaceful runs of those before it in ``study``."""
    crops, store, model, dicom = (str(study / name) for name in ("crops", "prepare", "train", "dicom"))
    small = [
        "--set", "fit.model.backbone=vit_small64_p8", "--set", "fit.epochs=3", "--set", "fit.batch_size=8",
        "--set", "fit.model.outputs=[malignancy, texture, diameter]",
        "--set", "fit.logs=false",  # whose names are times
    ]  # fmt: skip
    explained = ["--store", store, "--model", model]
    options = {
        "prepare": ["--dicom", dicom],
        "train": ["--store", crops, *small],
        "cross-validate": ["--store", crops, "--folds", "2", *small],
        "benchmark": [
            *explained, "--set", "pdf=false", "--set", "options.methods=[cdam, attention]", "--set",
            "options.metrics=[fidelity]",
        ],
        "explain": [*explained, "--method", "cdam,attention", "--format", "npz,nifti,png"],
        "report": [*explained, "--set", "pdf=false"],
        "export": [*explained, "--format", "nifti,dicom", "--dicom", dicom],
    }  # fmt: skip
    return ["lidc-xai", verb, *options[verb], "--out", str(out), "--device", "cpu", "--quiet"]


def preload() -> None:
    """Import before the forks what the verbs after prepare import, so that a kill seldom falls into an import."""
    for name in ("highdicom", "lightning", "matplotlib.pyplot", "monai"):
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)  # a pool of threads does not live through a fork


def start(arguments: Sequence[str], log: Path) -> int:
    """Run the command line in a forked process of its own session, which needs not import anything; its number."""
    process = os.fork()
    if process:
        return process
    os.setsid()
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    sys.argv = list(arguments)
    code = 1
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        os._exit(code)


def run(arguments: Sequence[str], log: Path) -> float:
    """Run to the end; returns the seconds. LidcXaiError where it fails."""
    clock = time.perf_counter()
    _, status = os.waitpid(start(arguments, log), 0)
    if os.waitstatus_to_exitcode(status) not in (0, 3):
        raise LidcXaiError(f"{arguments[1]} ended with {os.waitstatus_to_exitcode(status)}: {log.read_text()[-2000:]}")
    return time.perf_counter() - clock


def run_and_kill(arguments: Sequence[str], log: Path, files: int, delay_s: float) -> bool:
    """Run, and kill -9 all of it ``delay_s`` after its folder holds ``files`` files; whether it was still running."""
    out, process = Path(arguments[arguments.index("--out") + 1]), start(arguments, log)
    # a walk, not rglob: a folder may be renamed while it is looked into
    while sum(len(names) for _, _, names in os.walk(out)) < files and not _ended(process):
        time.sleep(0.005)
    time.sleep(delay_s)
    if _ended(process):
        return False
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def _ended(process: int) -> bool:
    """Whether it has ended; its status stays to be asked for."""
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def contents(folder: Path) -> dict[str, str]:
    """File -> hash of what it holds."""
    return {
        path.relative_to(folder).as_posix(): _hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }


def _hash(path: Path) -> str:
    if path.suffix != ".dcm":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    dataset = pydicom.dcmread(path)
    for element in list(dataset.iterall()):
        if element.keyword in _MADE_AT:
            element.value = ""
    return hashlib.sha256(json.dumps(dataset.to_json_dict(), sort_keys=True).encode()).hexdigest()


def try_verb(verb: str, study: Path, kills: int, random: Random) -> Outcome:
    """Run ``verb`` in peace into ``study/<verb>``, then until it was killed ``kills`` times, and compare each time."""
    peaceful, log = study / verb, study / f"{verb}.log"
    seconds = run(arguments_of(verb, study, peaceful), log)
    wanted = contents(peaceful)
    killed, tries, differing = 0, 0, set()
    while killed < kills and tries < 5 * kills:
        tries += 1
        with tempfile.TemporaryDirectory(dir=study) as folder:
            # the same base name: it is part of what some files say
            arguments = arguments_of(verb, study, Path(folder) / verb)
            # from 0 files (in the middle of reading) to all but one, and a moment more
            if not run_and_kill(arguments, log, random.randrange(len(wanted)), random.uniform(0, 0.1 * seconds)):
                continue
            killed += 1
            run(arguments, log)
            resumed = contents(Path(folder) / verb)
            differing |= {name for name in {*wanted, *resumed} if wanted.get(name) != resumed.get(name)}
    return Outcome(verb, round(seconds, 1), killed, len(wanted), tuple(sorted(differing)))


class Options(Config):
    """What is killed, and how often."""

    kills: int = Field(21, ge=1, description="Kills in all, dealt out evenly.")
    only: list[str] = Field(list(VERBS), min_length=1, description="Verbs to kill, separated by commas.")


def kill_all(options: Options, run: Run) -> None:
    """Each verb in peace and with its share of the kills; an error where any file differs."""
    chosen = words(options.only)
    for verb in chosen:
        if verb not in VERBS:
            raise UsageError(f"--only {verb}: wanted {', '.join(VERBS)}")
    if set(chosen) - {"prepare"}:
        preload()
    study = need_out(options).resolve()
    make_study(study, crops=24 if set(chosen) - {"prepare"} else 0)
    random, outcomes = Random(options.seed), list[dict[str, Any]]()
    for place, verb in enumerate(VERBS):
        share = (
            options.kills // len(chosen) + (chosen.index(verb) < options.kills % len(chosen)) if verb in chosen else 0
        )
        if verb not in chosen and place > VERBS.index(chosen[-1]):
            break
        outcome = try_verb(verb, study, share, random)
        outcomes.append(vars(outcome))
        print(
            f"{verb:15} {outcome.seconds:6.1f} s  killed {outcome.kills} times, {outcome.files} files, "
            f"{len(outcome.differing)} differ {' '.join(outcome.differing[:5])}",
            flush=True,
        )
        write_json(study / "kills.json", outcomes)
    run.results = {"outcomes": outcomes}
    if any(row["differing"] for row in outcomes):
        raise LidcXaiError(f"files differ after a kill, see {study / 'kills.json'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("kill_and_resume", Options, kill_all, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
