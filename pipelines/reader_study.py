"""A blinded reader study: export shuffled cases with and without maps, then score the sheets that come back.

    python pipelines/reader_study.py export --store runs/store --maps runs/maps --method cdam --out runs/study
    python pipelines/reader_study.py score --study runs/study --store runs/store --out runs/scores \\
        --sheet anna=anna-1.csv --sheet anna=anna-2.csv --sheet ben=ben-1.csv --sheet ben=ben-2.csv
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import Field
from studies.reader_study import export_reader_study, score_reader_study

from lidc_xai.commands.common import need_out, need_path
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import UsageError
from lidc_xai.imaging import CropStore
from lidc_xai.nodules.maps import load_maps
from lidc_xai.run import Run


class Options(Config):
    """One of the two steps."""

    step: Literal["export", "score"] = Field(description="export: cases, sheets and key; score: the sheets.")
    store: Path = Field(description="The store of the nodules.")
    maps: Path | None = Field(None, description="export: the folder that lidc-xai explain wrote to.")
    method: str = Field("cdam", description="export: whose maps are shown.")
    predictions: Path | None = Field(None, description="export: predictions.csv; then the AI's rating is shown.")
    wrong_share: float = Field(0.0, ge=0, le=1, description="export: share of cases with a deliberately wrong AI.")
    study: Path | None = Field(None, description="score: the folder that export wrote.")
    sheet: list[str] = Field([], description="score: READER=CSV, once per reader and session.")


def work(options: Options, run: Run) -> None:
    """Run one of the two steps."""
    out, store = need_out(options), CropStore(options.store)
    if options.step == "export":
        folder = need_path(options.maps, "--maps") / "maps"
        maps = {name: load_maps(folder, name, options.method) for name in store.nodule_ids}
        table = pd.read_csv(need_path(options.predictions, "--predictions")) if options.predictions else None
        paths = export_reader_study(
            store, out, maps, seed=options.seed, predictions=table, wrong_share=options.wrong_share
        )
        print(f"{out}: {len(paths)} files; keep the key away from the readers")
        return
    if not options.sheet:
        raise UsageError("--sheet is missing: READER=CSV, once per reader and session")
    score_reader_study(need_path(options.study, "--study"), _sheets(options.sheet), store, out)
    print(out / "scores.json")


def _sheets(given: Sequence[str]) -> dict[str, list[Path]]:
    sheets: dict[str, list[Path]] = defaultdict(list)
    for entry in given:
        reader, equals, path = entry.partition("=")
        if not equals or not Path(path).is_file():
            raise UsageError(f"--sheet {entry}: wanted READER=CSV with a file that exists")
        sheets[reader].append(Path(path))
    return sheets


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("reader_study", Options, work, __doc__ or "", arguments, argument="step")


if __name__ == "__main__":
    raise SystemExit(main())
