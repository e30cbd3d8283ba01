"""A blinded reader study: export shuffled cases with and without maps, then score the sheets that come back.

    python pipelines/reader_study.py export --store runs/store --maps runs/maps --method cdam --out runs/study
    python pipelines/reader_study.py score --study runs/study --store runs/store --out runs/scores \\
        --sheet anna=anna-1.csv --sheet anna=anna-2.csv --sheet ben=ben-1.csv --sheet ben=ben-2.csv
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from lidc_xai.errors import LidcXaiError, UsageError
from lidc_xai.imaging import CropStore
from lidc_xai.nodules.maps import load_maps
from lidc_xai.reporting import export_reader_study, score_reader_study


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run one of the two steps; an error is one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(dest="step", required=True)
    export = steps.add_parser("export", help="write two sessions of cases, sheets to fill in, and the key")
    export.add_argument("--maps", type=Path, required=True, help="the folder that lidc-xai explain wrote to")
    export.add_argument("--method", default="cdam")
    export.add_argument("--seed", type=int, default=0)
    score = steps.add_parser("score", help="score filled sheets")
    score.add_argument("--study", type=Path, required=True, help="the folder that export wrote")
    score.add_argument(
        "--sheet", action="append", required=True, metavar="READER=CSV", help="one per reader and session"
    )
    for step in (export, score):
        step.add_argument("--store", type=Path, required=True)
        step.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        store = CropStore(options.store)
        if options.step == "export":
            maps = {name: load_maps(options.maps / "maps", name, options.method) for name in store.nodule_ids}
            paths = export_reader_study(store, options.out, maps, seed=options.seed)
            print(f"{options.out}: {len(paths)} files; keep the key away from the readers")
        else:
            score_reader_study(options.study, _sheets(options.sheet), store, options.out)
            print(options.out / "scores.json")
    except LidcXaiError as error:
        print(f"reader_study: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _sheets(given: Sequence[str]) -> dict[str, list[Path]]:
    sheets: dict[str, list[Path]] = defaultdict(list)
    for entry in given:
        reader, equals, path = entry.partition("=")
        if not equals or not Path(path).is_file():
            raise UsageError(f"--sheet {entry}: wanted READER=CSV with a file that exists")
        sheets[reader].append(Path(path))
    return sheets


if __name__ == "__main__":
    sys.exit(main())
