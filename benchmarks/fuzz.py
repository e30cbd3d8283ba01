"""Damage inputs of every kind, seeded, and count what the package does: reads them, refuses them in one line, or fails.

A case fails where anything but LidcXaiError is raised, the process ends, a limit of processor time is passed, or more
memory is reserved than a small file can need. One case can be run again alone: ``--kind dicom --first 812 --cases 1``.

    python benchmarks/fuzz.py --cases 1000
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

from fuzzing.kinds import KINDS
from fuzzing.watch import run as try_cases
from pydantic import Field

from lidc_xai.commands.common import need_out, words
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import LidcXaiError, UsageError
from lidc_xai.run import Run


class Options(Config):
    """Which cases are tried, and what each may take."""

    cases: int = Field(100, ge=1, description="Of each kind (slow kinds take a part of it).")
    first: int = Field(0, ge=0, description="Number of the first case.")
    kind: list[str] = Field([], description="Kinds, separated by commas (none: all).")
    all: bool = Field(False, description="As many cases of slow kinds as of others.")
    seconds: float = Field(5.0, gt=0, description="Processor time of a case.")
    mib: int = Field(256, ge=1, description="Memory that a case may reserve.")


def fuzz(options: Options, run: Run) -> None:
    """Try the cases; a row for each kind, and an error where any failed."""
    chosen = words(options.kind)
    for name in chosen:
        if name not in KINDS:
            raise UsageError(f"--kind {name}: wanted {', '.join(KINDS)}")
    if options.out:
        need_out(options)
    table: dict[str, dict[str, Any]] = {}
    print("kind        cases  read  refused  failed  seconds")
    for name in chosen or KINDS:
        kind = KINDS[name]
        start, cases = perf_counter(), max(1, options.cases // (1 if options.all else kind.slow))
        found = try_cases(kind, cases, options.seed, options.seconds, options.mib, options.first)
        table[name] = {"cases": cases, "read": found.read, "refused": found.refused, "failed": found.failed}
        seconds = perf_counter() - start
        print(
            f"{name:10}  {cases:5}  {found.read:4}  {found.refused:7}  {len(found.failed):6}  {seconds:7.1f}",
            flush=True,
        )
        for number, said in found.failed[:20]:
            print(f"  case {number}: {said}", flush=True)
    run.results = table
    failed = sum(len(row["failed"]) for row in table.values())
    if failed:
        raise LidcXaiError(f"{failed} cases failed, see above")


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("fuzz", Options, fuzz, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
