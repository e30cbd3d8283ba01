"""The benchmark runner: methods × metrics × outputs over any iterable of cases, resumable case by case.

    out/benchmark.json        options and fingerprint (options and weights); another fingerprint is refused
    out/parts/<case>.parquet  rows of one case: case, plane, cluster, group, method, output, metric, x, value, note
                              (x is NaN for a figure, the position for a point of a curve)

Within a batch of cases the trunk is run once for all methods, random boxes and pixel sets once for all methods and
outputs, the ends of the MIF and LIF curves once for all, and every perturbed pass is read for every output. A part is
written atomically when its case is done: the same command goes on after a kill.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pandas as pd
from torch import nn

from lidc_xai.errors import DataError, LidcXaiError, UsageError
from lidc_xai.evaluation.benchmark.batch import COLUMNS, Batch, Rows, Variants
from lidc_xai.evaluation.benchmark.masks import maps_and_controls, measure_causes, measure_localisation, measure_radial
from lidc_xai.evaluation.benchmark.metrics import SIMPLE, measure_box, measure_fidelity
from lidc_xai.evaluation.benchmark.options import DISC, MODEL, READERS, BenchmarkOptions
from lidc_xai.evaluation.cases import Case, LazyCase, Sample, cases_of
from lidc_xai.evaluation.map_functions import MapFunction, check_names, fingerprint_of
from lidc_xai.files import atomic_path, read_json, remove_half_written, write_json
from lidc_xai.progress import track
from lidc_xai.skipped import Skipped

AGAINST_MASKS = ("localisation", "radial", "causes")
STAGE = "benchmark"


@dataclass(frozen=True)
class BenchmarkRun:
    """Where the results lie, how many cases were measured now, were there already, or were left out."""

    out: Path
    measured: int
    already_there: int
    skipped: list[Skipped] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        """All rows of all cases."""
        return read_parts(self.out)


def run_benchmark(
    model: nn.Module,
    samples: Iterable[Sample],
    out: Path | str,
    options: BenchmarkOptions | None = None,
    *,
    map_functions: Mapping[str, MapFunction] | None = None,
    model_masked: nn.Module | None = None,
    total: int | None = None,
    shard: tuple[int, int] = (0, 1),
) -> BenchmarkRun:
    """Measure every case that is not measured yet; results go to ``out``.

    ``map_functions``: name → function (model, images, targets) → maps, methods of the caller's own (``MapFunction``);
    they take part in every metric and table beside those of ``options.methods``. ``model_masked``: a copy of the model
    tuned with patches replaced; the curves are then also read by it (fidelity_tuned, of every fill).

    ``total``: number of samples, for the time left. ``shard`` (i, n): only every n-th case from the i-th; n processes
    with the same ``out`` share the work. Raises ``UsageError`` where ``out`` holds another benchmark.

    >>> options = BenchmarkOptions(methods=("cdam",), metrics=("fidelity",), points=3)
    >>> run = run_benchmark(vit, [(images, labels, None)], folder / "benchmark", options)
    >>> run.measured, run_benchmark(vit, [(images, labels, None)], folder / "benchmark", options).measured
    (2, 0)
    """
    options = options or BenchmarkOptions()
    folder = Path(out)
    functions = dict(map_functions or {})
    variants: Variants = {**options.variants(model), **{name: (function, {}) for name, function in functions.items()}}
    prepare_benchmark(model, folder, options, functions, model_masked, clean=shard == (0, 1))
    kept, measured = 0, 0
    skipped: list[Skipped] = []

    def to_do() -> Iterator[Case]:
        nonlocal kept
        for lazy in track(_sharded(cases_of(samples), shard), "benchmark", total):
            if part_path(folder, lazy.case_id).exists():
                kept += 1
                continue
            try:
                yield lazy.load()
            except LidcXaiError as error:
                skipped.append(Skipped(lazy.case_id, STAGE, str(error)))

    for cases in _together(to_do(), options.explain_batch):
        measured += _measure(model, cases, folder, options, variants, skipped, model_masked)
    return BenchmarkRun(folder, measured, kept, skipped)


def read_parts(out: Path | str) -> pd.DataFrame:
    """All rows under ``out``, by case; ``DataError`` where there are none."""
    paths = sorted((Path(out) / "parts").glob("*.parquet"))
    if not paths:
        raise DataError(f"{out}: holds no benchmark results (parts/*.parquet)")
    return pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)


def part_path(out: Path, case_id: str) -> Path:
    """Where a case's rows lie: its id, made fit for a file name."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", case_id).lstrip(".")[:80]
    name = plain if plain == case_id and plain else f"{plain}-{sha256(case_id.encode()).hexdigest()[:8]}"
    return out / "parts" / f"{name}.parquet"


def case_rows(
    model: nn.Module,
    cases: list[Case],
    options: BenchmarkOptions,
    variants: Variants | None = None,
    model_masked: nn.Module | None = None,
) -> list[pd.DataFrame]:
    """The rows of each of some cases of one image size."""
    batch = Batch(model, cases, options, options.variants(model) if variants is None else variants, model_masked)
    rows = Rows()
    wanted = options.metrics
    if "fidelity" in wanted or "discrimination" in wanted:
        measure_fidelity(batch, rows, "discrimination" in wanted)
    if "box" in wanted or "discrimination" in wanted:
        measure_box(batch, rows, "discrimination" in wanted)
    for name, measure in SIMPLE.items():
        if name in wanted:
            measure(batch, rows)
    if any(name in wanted for name in AGAINST_MASKS):
        maps = maps_and_controls(batch)
        for name, compare in zip(AGAINST_MASKS, (measure_localisation, measure_radial, measure_causes), strict=True):
            if name in wanted:
                compare(batch, rows, maps)
    return list(_by_case(cases, rows))


def _by_case(cases: list[Case], rows: Rows) -> Iterator[pd.DataFrame]:
    start = 0
    for case in cases:
        planes = []
        for v, plane in enumerate(case.plane_names):
            of_plane = rows.of_image(start + v)
            of_plane.insert(0, "plane", plane)
            planes.append(of_plane)
        start += len(case.images)
        frame = pd.concat(planes, ignore_index=True).assign(case=case.case_id, cluster=case.cluster, group=case.group)
        frame = frame[list(COLUMNS)]
        for name in COLUMNS:
            if name not in ("x", "value"):
                frame[name] = frame[name].astype("category")
        yield frame


def _measure(
    model: nn.Module,
    cases: list[Case],
    folder: Path,
    options: BenchmarkOptions,
    variants: Variants,
    skipped: list[Skipped],
    model_masked: nn.Module | None = None,
) -> int:
    """Measure cases together; where that fails, one by one, so that one bad case does not cost the others."""
    try:
        frames = case_rows(model, cases, options, variants, model_masked)
    except DataError as error:
        if len(cases) == 1:
            skipped.append(Skipped(cases[0].case_id, STAGE, str(error)))
            return 0
        return sum(_measure(model, [case], folder, options, variants, skipped, model_masked) for case in cases)
    for case, frame in zip(cases, frames, strict=True):
        with atomic_path(part_path(folder, case.case_id)) as temporary:
            frame.to_parquet(temporary, index=False)
    return len(cases)


def _together(cases: Iterable[Case], limit: int) -> Iterator[list[Case]]:
    """Cases that can be measured together: consecutive ones of one image size, of ``limit`` images at the most."""
    waiting: list[Case] = []
    for case in cases:
        count = sum(len(one.images) for one in waiting)
        if waiting and (waiting[0].images.shape[1:] != case.images.shape[1:] or count + len(case.images) > limit):
            yield waiting
            waiting = []
        waiting.append(case)
        if sum(len(one.images) for one in waiting) >= limit:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _sharded(cases: Iterable[LazyCase], shard: tuple[int, int]) -> Iterator[LazyCase]:
    index, count = shard
    if not 0 <= index < count:
        raise UsageError(f"shard is (i, n) with 0 ≤ i < n, not {shard}")
    seen: set[str] = set()
    for number, case in enumerate(cases):
        if case.case_id in seen:
            raise DataError(f"two cases are called {case.case_id!r}; ids must differ")
        seen.add(case.case_id)
        if number % count == index:
            yield case


def prepare_benchmark(
    model: nn.Module,
    out: Path | str,
    options: BenchmarkOptions | None = None,
    map_functions: Mapping[str, MapFunction] | None = None,
    model_masked: nn.Module | None = None,
    *,
    clean: bool = True,
) -> None:
    """Open ``out`` for this model and these options; ``UsageError`` where it holds another benchmark.

    ``clean``: remove what a killed run left half-written (not while another process writes there).
    """
    options = options or BenchmarkOptions()
    fingerprint = options.fingerprint(model)
    if map_functions:
        check_names(map_functions, options.variants(model), (*options.methods, DISC, READERS, MODEL))
        fingerprint += f"-{fingerprint_of(map_functions)[:16]}"
    if model_masked is not None:
        fingerprint += f"-masked-{options.fingerprint(model_masked)}"
    folder = Path(out)
    if clean:
        remove_half_written(folder)
    path = folder / "benchmark.json"
    if path.exists():
        try:
            known = read_json(path).get("fingerprint")
        except (DataError, AttributeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); remove it or choose another --out") from None
        if known != fingerprint:
            raise UsageError(
                f"{folder}: holds a benchmark of another model or with other options; choose another --out"
            )
        return
    write_json(path, {"fingerprint": fingerprint, "options": options.model_dump(mode="json")})
