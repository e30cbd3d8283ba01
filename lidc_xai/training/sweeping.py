"""``sweep``: a search over options with Optuna, judged on the validation part alone; the test part is never read.

The study lives in a database (SQLite in the run's folder, or any storage URL), so that a search is continued after a
kill and shared by several processes or machines.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
import pandas as pd
import yaml
from optuna.trial import FrozenTrial, Trial, TrialState
from pydantic import Field, model_validator

from lidc_xai.config import Options
from lidc_xai.csv_files import write_csv
from lidc_xai.data.augmentation import mixed_seed
from lidc_xai.data.dataset import PlaneDataset
from lidc_xai.errors import ModelError, UsageError
from lidc_xai.files import write_text
from lidc_xai.progress import say
from lidc_xai.training.fitting import fit, planes_for
from lidc_xai.training.loop.record import run_key
from lidc_xai.training.options import FitOptions

if TYPE_CHECKING:
    from lidc_xai.imaging.store.crop_store import CropStore

HEARTBEAT_SECONDS = 20
MOST_FAILURES = 5


class Range(Options):
    """What one option may become: numbers from ``low`` to ``high`` (``log``: evenly in the logarithm; ``step``: whole
    numbers), or one of ``choices``.

    >>> Range(low=1e-5, high=1e-3, log=True).high
    0.001
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    step: int | None = Field(default=None, ge=1)
    choices: list[str | int | float | bool | None] | None = None

    @model_validator(mode="after")
    def _either(self) -> Range:
        numbers = self.low is not None and self.high is not None and self.low <= self.high
        if numbers == bool(self.choices):
            raise ValueError("give low and high (low not above high), or choices")
        return self

    def suggest(self, trial: Trial, name: str) -> Any:
        """A value from this range for ``trial``."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        assert self.low is not None
        assert self.high is not None
        if self.step is not None:
            return trial.suggest_int(name, int(self.low), int(self.high), step=self.step)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


PAPER_RANGES: dict[str, Range] = {
    "trainable_tensors": Range(low=10, high=180, step=1),
    "model.backbone_dropout": Range(low=0.0, high=0.12),
    "optimiser.lr": Range(low=1e-6, high=1e-3, log=True),
    "batch_size": Range(low=8, high=32, step=1),
}
"""Ranges of arXiv 2312.02364, A.5.2; 180 parameter tensors are all of them (``configs/sweep_paper.yaml`` has more)."""


class SweepOptions(Options):
    """One search.

    >>> SweepOptions(trials=5, space={"batch_size": Range(choices=[8, 16])}).trials
    5
    """

    trials: int = Field(default=30, ge=1, description="Finished trials, over all processes and calls.")
    objective: Literal["loss", "auc"] = Field(default="loss", description="Validation figure that is compared.")
    space: dict[str, Range] = Field(default_factory=lambda: dict(PAPER_RANGES), description="Option name -> its range.")
    storage: str | None = Field(default=None, description="Optuna storage URL (none: SQLite in the run's folder).")
    study: str = Field(default="sweep", description="Name of the study within the storage.")
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class SweepResult:
    """Best options found, their trial's number and value, and one row per trial."""

    options: FitOptions
    number: int
    value: float
    trials: pd.DataFrame


def sweep(
    store: CropStore,
    out: Path | str,
    *,
    train_ids: Sequence[str],
    validation_ids: Sequence[str],
    options: FitOptions | None = None,
    search: SweepOptions | None = None,
    data: PlaneDataset | None = None,
) -> SweepResult:
    """Run trials until ``search.trials`` are finished; write ``out/sweep.csv`` and ``out/best.yaml``.

    A trial trains on ``train_ids`` and is judged on ``validation_ids``. The same call continues a search that was
    killed; the same call elsewhere, with the same storage, takes part in it. A trial whose loss becomes NaN counts as
    failed.
    """
    base, search, folder = options or FitOptions(), search or SweepOptions(), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name in search.space:
        _with_values(base, {name: _current(base, name)})
    if data is None:
        wanted = list(dict.fromkeys([*train_ids, *validation_ids]))
        data = planes_for(store, wanted, base)
    study = _open_study(store, folder, base, search, [list(train_ids), list(validation_ids)])

    def judge(trial: Trial) -> float:
        # A generator per trial: a search that goes on, or that several processes share, does not repeat itself.
        study.sampler = optuna.samplers.TPESampler(seed=mixed_seed(search.seed, trial.number) % 2**32)
        values = {name: one.suggest(trial, name) for name, one in sorted(search.space.items())}
        say(f"trial {trial.number}: {values}")
        result = fit(
            store, None, train_ids=train_ids, validation_ids=validation_ids, options=_with_values(base, values),
            data=data,
        )  # fmt: skip
        trial.set_user_attr("validation", result.validation)
        trial.set_user_attr("best_epoch", result.best_epoch)
        history = result.history
        return float(history["val_loss"].min() if search.objective == "loss" else history["val_auc"].max())

    def note(study: optuna.Study, trial: FrozenTrial) -> None:
        if _finished(study):
            _write(study, base, folder)
        elif len(study.get_trials(deepcopy=False, states=(TrialState.FAIL,))) >= MOST_FAILURES:
            raise ModelError(
                f"the first {MOST_FAILURES} trials all failed, the last on {trial.params}; narrow the space"
            )
        if _finished(study) >= search.trials:
            study.stop()

    if _finished(study) < search.trials:
        study.optimize(judge, catch=(ModelError,), callbacks=[note])
    return _write(study, base, folder)


def _open_study(
    store: CropStore, folder: Path, base: FitOptions, search: SweepOptions, parts: list[list[str]]
) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = search.storage or f"sqlite:///{folder / 'study.db'}"
    direction: Literal["minimize", "maximize"] = "minimize" if search.objective == "loss" else "maximize"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # A heartbeat tells a trial that runs elsewhere from one whose process was killed: that one is tried again.
            storage = optuna.storages.RDBStorage(
                url, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=3 * HEARTBEAT_SECONDS,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=2),
            )  # fmt: skip
            study = optuna.create_study(
                study_name=search.study, storage=storage, direction=direction, load_if_exists=True
            )
    except Exception as error:  # the storage's driver decides what it raises
        reason = str(error).splitlines()[0][:160]
        raise UsageError(f"storage {url}: cannot be opened ({reason}); give an Optuna storage URL") from error
    space = {name: one.model_dump() for name, one in sorted(search.space.items())}
    key = json.dumps({**run_key(store, parts, base), "objective": search.objective, "space": space}, sort_keys=True)
    if study.user_attrs.setdefault("key", key) != key:
        raise UsageError(
            f"study {search.study!r} in {url} is of another store, parts, space or options; give another name"
        )
    study.set_user_attr("key", key)
    return study


def _finished(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


def _current(options: FitOptions, name: str) -> Any:
    value: Any = options
    for part in name.split("."):
        if not hasattr(value, part):
            raise UsageError(f"space {name!r}: there is no such option; names are those of a training configuration")
        value = getattr(value, part)
    return value


def _with_values(base: FitOptions, values: dict[str, Any]) -> FitOptions:
    """``base`` with some options replaced by their dotted names, validated again."""
    plain = base.model_dump()
    for name, value in values.items():
        place = plain
        *groups, last = name.split(".")
        for group in groups:
            place = place[group]
        place[last] = value
    return FitOptions.of(**plain)


def _write(study: optuna.Study, base: FitOptions, folder: Path) -> SweepResult:
    best: FrozenTrial = study.best_trial
    options = _with_values(base, best.params)
    table = study.trials_dataframe(attrs=("number", "value", "state", "params", "duration", "user_attrs"))
    write_csv(folder / "sweep.csv", table)
    write_text(folder / "best.yaml", yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False))
    assert best.value is not None
    return SweepResult(options, best.number, best.value, table)
