"""Who is trained on, who chooses the checkpoint, who is tested: folds by patient, nested, stratified, as JSON.

``patient``: stratified folds in which all nodules of a patient stay together; the validation part comes from the
training patients. ``paper``: the published protocol's folds by nodule (StratifiedKFold), in which about half of the
test nodules have a patient that is also trained on: for like-for-like rows alone, and it says ``"leaks": true``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, StratifiedShuffleSplit

from lidc_xai.errors import DataError, UsageError
from lidc_xai.files import read_json, write_json

if TYPE_CHECKING:
    import pandas

Kind = Literal["patient", "paper"]
PARTS = ("train", "validation", "test")
_BY: dict[str, str] = {"patient": "patient_id", "paper": "nodule_id"}
_UNLABELLED = 2
PIECES = 20
"""A hold-out split is put together from twentieths."""
_LABEL_WORDS = {0: "benign", 1: "malignant"}


@dataclass(frozen=True)
class FoldIds:
    """Ids of one fold's three parts: patients in a :class:`Splits` of kind "patient", else nodules."""

    train: list[str]
    validation: list[str]
    test: list[str]


@dataclass(frozen=True)
class Splits:
    """All folds, and how they were made.

    ``by``: the manifest's column that the ids of ``folds`` belong to. ``leaks``: whether a patient may be on both
    sides. ``validation_share``: of the training patients (or nodules); 0 where the test part chooses the checkpoint.
    """

    kind: Kind
    by: str
    leaks: bool
    seed: int
    n_folds: int
    validation_share: float
    folds: list[FoldIds]

    def __len__(self) -> int:
        return len(self.folds)

    def nodules(self, manifest: pandas.DataFrame, fold: int) -> FoldIds:
        """Nodule ids of the three parts of fold ``fold`` (0-based), in the manifest's order.

        Raises UsageError for a fold that is not there, DataError where the manifest has nodules that the splits do not
        know, or where a patient would be on both sides of a split that is not the paper's.
        """
        if not 0 <= fold < len(self.folds):
            raise UsageError(f"fold {fold} does not exist; these splits have folds 0 to {len(self.folds) - 1}")
        ids = manifest[self.by].tolist()
        known = {key for part in PARTS for key in getattr(self.folds[fold], part)}
        strangers = [key for key in ids if key not in known]
        if strangers:
            raise DataError(
                f"{len(set(strangers))} ids of the manifest are in no part of the splits, first {strangers[0]}; "
                "make new splits for this store"
            )
        chosen = {part: set(getattr(self.folds[fold], part)) for part in PARTS}
        nodules = manifest["nodule_id"].tolist()
        of_store = FoldIds(*([n for n, key in zip(nodules, ids, strict=True) if key in chosen[part]] for part in PARTS))
        if not self.leaks:
            patient_of = dict(zip(nodules, manifest["patient_id"].tolist(), strict=True))
            _refuse_shared(
                FoldIds(*([patient_of[n] for n in getattr(of_store, p)] for p in PARTS)), fold, "these splits"
            )
        return of_store

    def leaking_share(self, manifest: pandas.DataFrame, fold: int) -> float:
        """Share of a fold's test nodules whose patient is also in the training part (0 for a split by patient)."""
        patient_of = dict(zip(manifest["nodule_id"].tolist(), manifest["patient_id"].tolist(), strict=True))
        ids = self.nodules(manifest, fold)
        trained = {patient_of[key] for key in ids.train}
        return float(np.mean([patient_of[key] in trained for key in ids.test]))

    def save(self, path: Path | str) -> Path:
        """Write as JSON, atomically."""
        write_json(path, asdict(self))
        return Path(path)


def make_splits(
    manifest: pandas.DataFrame,
    n_folds: int = 5,
    seed: int = 44,
    kind: Kind = "patient",
    validation_share: float = 0.15,
) -> Splits:
    """Folds over the nodules of ``manifest`` (a cohort or a store's manifest), stratified by label.

    Nodules without a label go with their patient as a class of their own ("patient"); in the paper's split they only
    train. The validation part is one of ``round(1 / validation_share)`` inner folds of the training part, the one
    whose balance of labels is nearest; 0 is for ``kind="paper"`` alone and makes the test part the validation part,
    as the authors did. Raises UsageError where the manifest cannot be split so.

    >>> splits = make_splits(select_cohort("paper854"), n_folds=5)
    >>> len(splits.folds), splits.folds[0].test != splits.folds[1].test
    (5, True)
    """
    _check_arguments(manifest, n_folds, kind, validation_share)
    ids, groups, labels = _columns(manifest, kind)
    _check_classes(labels, groups, n_folds, "nodules" if kind == "paper" else "patients")
    folds = []
    for number, (rest, test) in enumerate(_outer(labels, groups, n_folds, seed, kind)):
        if validation_share:
            inner = _inner(labels[rest], groups[rest], validation_share, seed + number, kind, number)
            train, validation = rest[~inner], rest[inner]
        else:
            train, validation = rest, test
        folds.append(_fold(ids, labels, (train, validation, test), number))
    return Splits(kind, _BY[kind], kind == "paper", seed, n_folds, validation_share, folds)


def make_holdout(
    manifest: pandas.DataFrame,
    seed: int = 44,
    kind: Kind = "patient",
    test_share: float = 0.15,
    validation_share: float = 0.15,
) -> Splits:
    """One split instead of folds: ``test_share`` to test, ``validation_share`` of the rest to choose on.

    Stratified. The defaults are those of arXiv 2312.02364, section 5: .15 / .1275 / .7225, there by nodule
    (``kind="paper"``), met to the nodule; by patient to the nearest twentieth. Raises UsageError as :func:`make_splits`
    does.

    >>> split = make_holdout(select_cohort("paper854"), kind="paper")
    >>> [len(part) for part in (split.folds[0].train, split.folds[0].validation, split.folds[0].test)]
    [617, 109, 128]
    """
    _check_arguments(manifest, PIECES, kind, validation_share)
    if not 0 < test_share <= 0.5 or validation_share == 0:
        raise UsageError(f"hold-out shares {test_share:g} and {validation_share:g}: give shares above 0 and up to 0.5")
    ids, groups, labels = _columns(manifest, kind)
    _check_classes(labels, groups, PIECES, "nodules" if kind == "paper" else "patients")

    def set_aside(rows: NDArray[np.intp], share: float, seed: int) -> NDArray[np.intp]:
        if kind == "paper":
            labelled = rows[labels[rows] != _UNLABELLED]
            draw = StratifiedShuffleSplit(1, test_size=round(share * len(labelled)), random_state=seed)
            return labelled[next(draw.split(labelled, labels[labelled]))[1]]
        pieces = _outer(labels[rows], groups[rows], PIECES, seed, kind)
        return rows[np.concatenate([piece for _, piece in pieces[: max(round(share * PIECES), 1)]])]

    everything = np.arange(len(labels))
    test = np.sort(set_aside(everything, test_share, seed))
    rest = np.setdiff1d(everything, test)
    validation = np.sort(set_aside(rest, validation_share, seed + 1))
    parts = (np.setdiff1d(rest, validation), validation, test)
    return Splits(kind, _BY[kind], kind == "paper", seed, 1, validation_share, [_fold(ids, labels, parts, 0)])


def _columns(
    manifest: pandas.DataFrame, kind: Kind
) -> tuple[NDArray[np.object_], NDArray[np.object_], NDArray[np.int_]]:
    """Ids, groups that stay together, and labels of the manifest's rows."""
    ids = manifest[_BY[kind]].astype(str).to_numpy(dtype=object)
    groups = ids if kind == "paper" else manifest["patient_id"].astype(str).to_numpy(dtype=object)
    labels = manifest["label"].astype("Float64").fillna(_UNLABELLED).to_numpy(dtype=float).astype(int)
    return ids, groups, labels


def split_store(
    store: Path | str, n_folds: int = 5, seed: int = 44, kind: Kind = "patient", validation_share: float = 0.15
) -> Path:
    """Make splits for a store and write ``STORE/splits/<kind>-<n_folds>fold-seed<seed>.json``; returns the path.

    >>> split_store(store.path, n_folds=2, kind="paper", validation_share=0).suffix
    '.json'
    """
    from lidc_xai.imaging import CropStore

    opened = CropStore(store)
    splits = make_splits(opened.manifest, n_folds, seed, kind, validation_share)
    return splits.save(opened.path / "splits" / f"{kind}-{n_folds}fold-seed{seed}.json")


def load_splits(path: Path | str) -> Splits:
    """Read what :meth:`Splits.save` wrote.

    Raises UsageError where the file is missing, DataError where it is damaged or where a patient is on both sides of
    a split that is not the paper's.

    >>> path = split_store(store.path, n_folds=2, kind="paper", validation_share=0)
    >>> len(load_splits(path).folds)
    2
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: does not exist; make splits with: lidc-xai split --store STORE")
    try:
        values = read_json(path)
        folds = [FoldIds(**{part: [str(key) for key in fold[part]] for part in PARTS}) for fold in values["folds"]]
        splits = Splits(**{**values, "folds": folds})
        hash((splits.kind, splits.by))
    except (DataError, ValueError, TypeError, KeyError) as error:
        ours = isinstance(error, DataError)
        reason = str(error).removeprefix(f"{path}: ") if ours else f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: not a file of splits ({reason}); make it again with lidc-xai split") from error
    _check_loaded(splits, path)
    return splits


def _check_loaded(splits: Splits, path: Path) -> None:
    if splits.by not in _BY.values() or splits.kind not in _BY or not splits.folds:
        raise DataError(
            f"{path}: kind {splits.kind!r} by {splits.by!r} is not known; make it again with lidc-xai split"
        )
    if splits.leaks != (splits.kind == "paper"):
        raise DataError(f"{path}: only the paper's split leaks, and it says so; got {splits.kind!r}, {splits.leaks=}")
    tested = [key for fold in splits.folds for key in fold.test]
    if len(set(tested)) < len(tested):
        raise DataError(f"{path}: something is tested in two folds; make it again with lidc-xai split")
    for number, fold in enumerate(splits.folds):
        if splits.kind == "patient":
            _refuse_shared(fold, number, str(path))
        elif set(fold.train) & {*fold.validation, *fold.test}:
            raise DataError(f"{path}: fold {number} trains on nodules that it tests or validates; make it again")


def _refuse_shared(patients: FoldIds, fold: int, where: str) -> None:
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = sorted(set(getattr(patients, one)) & set(getattr(patients, other)))
        if shared:
            raise DataError(
                f"{where}: fold {fold} has {len(shared)} patients in {one} and in {other} (first {shared[0]}); "
                "split by patient: lidc-xai split --kind patient"
            )


def _outer(
    labels: NDArray[np.int_], groups: NDArray[np.object_], n_folds: int, seed: int, kind: Kind
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(rest, test) row numbers of every fold."""
    rows = np.arange(len(labels))
    if kind == "patient":
        with _quiet():
            return list(StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(rows, labels, groups))
    labelled = rows[labels != _UNLABELLED]  # the published protocol knows no others
    tests = [
        labelled[test]
        for _, test in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(labelled, labels[labelled])
    ]
    return [(np.setdiff1d(rows, test), test) for test in tests]


def _inner(
    labels: NDArray[np.int_], groups: NDArray[np.object_], share: float, seed: int, kind: Kind, fold: int
) -> NDArray[np.bool_]:
    """Which rows of the training part validate: the inner fold whose share of malignant nodules is nearest."""
    pieces = max(2, round(1 / share))
    most = int(np.unique(labels, return_counts=True)[1].max())
    if len(set(groups)) < pieces or most < pieces:
        things = _BY[kind].removesuffix("_id")
        raise UsageError(
            f"fold {fold}: {len(set(groups))} training {things}s with at most {most} nodules of a class "
            f"are too few for a validation share of {share:g}; take a larger validation_share or more patients"
        )
    if kind == "patient":
        tests = StratifiedGroupKFold(pieces, shuffle=True, random_state=seed).split(labels, labels, groups)
    else:
        tests = StratifiedKFold(pieces, shuffle=True, random_state=seed).split(labels, labels)
    labelled = labels != _UNLABELLED
    wanted = labels[labelled].mean()

    def off_balance(rows: NDArray[np.intp]) -> tuple[bool, float]:
        here = labels[rows][labelled[rows]]
        return len(set(here)) < 2, abs(here.mean() - wanted) if len(here) else 1.0

    with _quiet():
        best = min((test for _, test in tests), key=off_balance)
    chosen = np.zeros(len(labels), bool)
    chosen[best] = True
    return chosen


@contextmanager
def _quiet() -> Iterator[None]:
    """scikit-learn warns of small classes, nodules without a label among them; what matters is checked here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        yield


def _check_arguments(manifest: pandas.DataFrame, n_folds: int, kind: str, validation_share: float) -> None:
    if kind not in get_args(Kind):
        raise UsageError(f"splits of kind {kind!r} are not known; choose {' or '.join(get_args(Kind))}")
    missing = [name for name in ("nodule_id", "patient_id", "label") if name not in manifest]
    if missing:
        raise UsageError(f"the manifest has no column {missing[0]!r}; splits need nodule_id, patient_id and label")
    if n_folds < 2:
        raise UsageError(f"n_folds is {n_folds}; at least 2 are needed")
    if not 0 <= validation_share <= 0.5 or (kind == "patient" and validation_share == 0):
        raise UsageError(
            f"validation_share is {validation_share:g}; give a share above 0 and up to 0.5 (0: paper only)"
        )


def _check_classes(labels: NDArray[np.int_], groups: NDArray[np.object_], n_folds: int, things: str) -> None:
    for label, word in _LABEL_WORDS.items():
        here = len(set(groups[labels == label]))
        if here < n_folds:
            raise UsageError(
                f"{n_folds} folds need at least {n_folds} {things} with a {word} nodule, got {here}; "
                "take fewer folds or a larger cohort"
            )


def _fold(
    ids: NDArray[np.object_], labels: NDArray[np.int_], parts: Sequence[NDArray[np.intp]], number: int
) -> FoldIds:
    """The ids of a fold's three parts, each of which has both classes."""
    for part, rows in zip(PARTS, parts, strict=True):
        absent = [word for label, word in _LABEL_WORDS.items() if label not in labels[rows]]
        if absent:
            raise UsageError(
                f"the {part} part of fold {number} has no {absent[0]} nodule; take fewer folds, another seed or more "
                "patients"
            )
    return FoldIds(*(list(dict.fromkeys(ids[rows].tolist())) for rows in parts))


def describe(splits: Splits, manifest: pandas.DataFrame) -> list[dict[str, Any]]:
    """Per fold and part: patients, nodules, malignant and benign ones, for a table on the screen."""
    table = manifest.set_index("nodule_id")
    rows = []
    for fold in range(len(splits)):
        ids = splits.nodules(manifest, fold)
        for part in PARTS:
            here = table.loc[getattr(ids, part)]
            counts = {word: int((here["label"] == label).sum()) for label, word in _LABEL_WORDS.items()}
            rows.append(
                {"fold": fold, "part": part, "patients": here["patient_id"].nunique(), "nodules": len(here), **counts}
            )
    return rows
