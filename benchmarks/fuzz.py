"""Damage inputs of every kind, seeded, and count what the package does: reads them, refuses them in one line, or fails.

A case fails where anything but LidcXaiError is raised, the process ends, a limit of processor time is passed, or more
memory is reserved than a small file can need. One case can be run again alone: ``--kind dicom --first 812 --cases 1``.

    python benchmarks/fuzz.py --cases 1000
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

from fuzzing.kinds import KINDS
from fuzzing.results import RESULTS
from fuzzing.watch import run

from lidc_xai.files import write_json

KINDS.update(RESULTS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100, help="of each kind (slow kinds take a part of it)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="repeat for several (default: all)")
    parser.add_argument("--all", action="store_true", help="as many cases of slow kinds as of others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0, help="processor time of a case")
    parser.add_argument("--mib", type=int, default=256, help="memory that a case may reserve")
    parser.add_argument("--json", type=Path, help="write the counts here too")
    options = parser.parse_args()
    table = {}
    print("kind        cases  read  refused  failed  seconds")
    for name in options.kind or KINDS:
        kind = KINDS[name]
        start, cases = perf_counter(), max(1, options.cases // (1 if options.all else kind.slow))
        found = run(kind, cases, options.seed, options.seconds, options.mib, options.first)
        table[name] = {"cases": cases, "read": found.read, "refused": found.refused, "failed": found.failed}
        seconds = perf_counter() - start
        print(
            f"{name:10}  {cases:5}  {found.read:4}  {found.refused:7}  {len(found.failed):6}  {seconds:7.1f}",
            flush=True,
        )
        for number, words in found.failed[:20]:
            print(f"  case {number}: {words}", flush=True)
    if options.json:
        write_json(options.json, table)
    return 1 if any(row["failed"] for row in table.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
