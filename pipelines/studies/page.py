"""The page of the four studies: tables that a run writes into a Markdown page, between text that people write.

    <!-- rows cdam; X_multi: MSRC; fidelity/area + box/area -->  a row per method and model, a column per metric
    <!-- claims cdam -->                                        what the paper states, and what was found
    <!-- missing cdam -->                                       what could not run, and what to bring
    <!-- end -->

What stands between a mark and its end is replaced; a study that has no results in the run keeps what it has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from lidc_xai.errors import DataError
from lidc_xai.files import write_text

_BLOCK = re.compile(r"<!-- (rows|claims|missing) (?P<study>\w+)(?P<rest>[^>]*?) -->\n.*?<!-- end -->", re.DOTALL)


def write_page(page: Path, folders: Mapping[str, Path]) -> int:
    """Fill the marks of ``page`` from each study's folder; returns how many were filled.

    ``DataError`` where the page has no mark.
    """
    text = page.read_text(encoding="utf-8")
    if not _BLOCK.search(text):
        raise DataError(f"{page}: has no mark such as '<!-- claims cdam -->' … '<!-- end -->'")
    filled = 0

    def table(block: re.Match[str]) -> str:
        nonlocal filled
        folder = folders.get(block["study"])
        if folder is None or not (folder / "table.csv").is_file():
            return block[0]
        filled += 1
        mark = block[0].split("\n", 1)[0]
        parts = [part.strip() for part in block["rest"].split(";")[1:]]
        lines = {"rows": rows, "claims": claims, "missing": missing}[block[1]](folder, parts)
        return "\n".join([mark, *lines, "<!-- end -->"])

    write_text(page, _BLOCK.sub(table, text))
    return filled


def rows(folder: Path, parts: list[str]) -> list[str]:
    """``parts``: the data, and the metrics. A cell: mean [95 % interval] (the paper's figure)."""
    data, wanted = parts[0], [metric.strip() for metric in parts[1].split(" + ")]
    table = pd.read_csv(folder / "table.csv", keep_default_na=False, na_values=[""])
    own = table[(table["data"] == data) & table["metric"].isin(wanted) & table["here"].notna()]
    models = list(dict.fromkeys(own["model"]))
    heads = [
        "method",
        *(["model"] if len(models) > 1 else []),
        *wanted,
        "n",
    ]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for (model, method), group in own.groupby(["model", "method"], sort=False):
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        cells = [_cell(by_metric[metric]) if metric in by_metric else "–" for metric in wanted]
        counts = sorted({int(n) for n in group["n"]})
        lines.append(
            _row(
                [
                    str(method),
                    *([str(model)] if len(models) > 1 else []),
                    *cells,
                    " to ".join(map(str, counts[:: max(1, len(counts) - 1)])),
                ]
            )
        )
    notes = [text for column in ("differs", "note") for text in dict.fromkeys(own[column].dropna())][:6]
    return [*lines, "", *(f"*{data}, {', '.join(models)}. {'; '.join(notes)}.*" for _ in range(bool(len(own))))]


def _cell(row: Mapping[str, float]) -> str:
    between = f" [{_number(row['low'])}, {_number(row['high'])}]" if np.isfinite(row["low"]) else ""
    paper = f" (paper {_number(row['published'])})" if np.isfinite(row["published"]) else ""
    return _number(row["here"]) + between + paper


def claims(folder: Path, parts: list[str]) -> list[str]:
    """Claim, where, effect with its interval (above 0: it holds), n, verdict."""
    lines = [_row(["claim", "on", "effect", "n", "verdict", "note"]), _row(["---"] * 6)]
    for one in json.loads((folder / "findings.json").read_text(encoding="utf-8")):
        low, high = (np.nan if one[key] is None else one[key] for key in ("low", "high"))
        between = f" [{_number(low)}, {_number(high)}]" if np.isfinite(low) else ""
        effect = "–" if one["effect"] is None else _number(one["effect"]) + between
        where = f"{one['data']}, {one['model']}"
        lines.append(_row([one["claim"], where, effect, str(one["n"]), f"**{one['verdict']}**", one["note"]]))
    return lines


def missing(folder: Path, parts: list[str]) -> list[str]:
    """What was left out and why; steps that were not reached stand together by their images and model, and what the
    paper prints without a figure here is counted."""
    path = folder / "skipped.csv"
    table = (
        pd.read_csv(path, keep_default_na=False)
        if path.is_file()
        else pd.DataFrame(columns=["nodule_id", "stage", "reason"])
    )
    printed = table[table["stage"] == "published"]
    late, others = table[table["stage"] == "limit"], table[~table["stage"].isin(["limit", "published"])]
    lines = [f"- {row.nodule_id}: {row.reason}" for row in others.itertuples()]
    by_images: dict[str, list[str]] = {}
    for row in late.itertuples():
        step, _, images = str(row.nodule_id).partition(": ")
        by_images.setdefault(images, []).append(f"{step} ({str(row.reason).partition(' images')[0]})")
    return [
        *lines,
        *(f"- {images}, images not reached: {', '.join(steps)}" for images, steps in by_images.items()),
        *(
            [f"- {len(printed)} figures that the paper prints have none of ours beside them in this run"]
            if len(printed)
            else []
        ),
    ]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float) -> str:
    size = abs(value)
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if size >= 0.001 or size == 0 else f"{value:.1e}"
