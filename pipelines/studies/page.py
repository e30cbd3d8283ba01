"""The page of the four studies: a text with marks (page.md), filled from the runs in one go.

    <!-- rows cdam; X_multi: MSRC; fidelity/area + box/area -->  a row per method and model, a column per metric
    <!-- claims cdam -->                    each sentence of the paper (claims.csv), how it was tested, the verdict
    <!-- missing cdam -->                                        what could not run, and what to bring
    {{cdam; X_multi: MSRC; dinov2; reciprocam; objects/auprc}}   one figure in the text: mean ("…; interval": with it;
                                                                 "…; n": how many images)
    {{effect; cdam; X_multi: MSRC; dinov2; claim}}               a claim's effect with its interval

A study is a run's folder; STUDY_beside is another run's. A mark that a run has nothing for says so; nothing but the
text and the runs' tables goes into the page, so that the same runs give the same page.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lidc_xai.errors import DataError
from lidc_xai.files import write_text

TEXT = Path(__file__).with_name("page.md")
CLAIMS = Path(__file__).with_name("claims.csv")
BESIDE = "_beside"
_MARK = re.compile(r"<!-- (?P<kind>rows|claims|missing) (?P<study>\w+)(?P<rest>[^>]*?) -->")
_FIGURE = re.compile(r"\{\{(?P<parts>[^{}]+)\}\}")


def write_page(page: Path, folders: Mapping[str, Path], text: Path = TEXT) -> int:
    """Write ``page``: ``text`` with every mark filled from the studies' folders; returns how many marks it has.

    ``DataError`` where the text has no mark.
    """
    found = text.read_text(encoding="utf-8")
    if not _MARK.search(found):
        raise DataError(f"{text}: has no mark such as '<!-- claims cdam -->'")
    there = {name: folder for name, folder in folders.items() if (folder / "table.csv").is_file()}
    tables = {name: _table(folder) for name, folder in there.items()}
    found_by = {name: _findings(folder) for name, folder in there.items()}

    def filled(mark: re.Match[str]) -> str:
        study, parts = mark["study"], [part.strip() for part in mark["rest"].split(";")[1:]]
        if mark["kind"] == "claims":
            return "\n".join(claims(study, found_by))
        if study not in there:
            return "*Not run.*"
        return "\n".join(rows(tables[study], parts) if mark["kind"] == "rows" else missing(there[study]))

    def figure(mark: re.Match[str]) -> str:
        parts = [part.strip() for part in mark["parts"].split(";")]
        return one_effect(found_by, parts[1:]) if parts[0] == "effect" else one_figure(tables, parts)

    written, count = _MARK.subn(filled, found)
    write_text(page, _FIGURE.sub(figure, written))
    return count


def _table(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "table.csv", keep_default_na=False, na_values=[""])
    return table[table["here"].notna()]


def _findings(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
    return found


def one_effect(found_by: Mapping[str, list[dict[str, Any]]], parts: list[str]) -> str:
    """``parts``: study, data, how the model's name begins, the claim; a dash where it was not tested."""
    study, data, model, claim = parts
    for one in found_by.get(study, []):
        if one["data"] == data and one["claim"] == claim and one["model"].startswith(model):
            return f"{_short(one['effect'])} [{_short(one['low'])}, {_short(one['high'])}]"
    return "–"


def one_figure(tables: Mapping[str, pd.DataFrame], parts: list[str]) -> str:
    """``parts``: study, data, how the model's name begins, method, metric, and what of it; a dash for what is not."""
    study, data, model, method, metric, *what = parts
    table = tables.get(study)
    if table is None:
        return "–"
    own = table[(table["data"] == data) & (table["method"] == method) & (table["metric"] == metric)]
    own = own[own["model"].str.startswith(model)]
    if own.empty:
        return "–"
    row = own.iloc[0]
    if what == ["n"]:
        return str(int(row["n"]))
    between = f" [{_short(row['low'])}, {_short(row['high'])}]" if what == ["interval"] else ""
    return _short(row["here"]) + between


def _short(value: float) -> str:
    """Two digits behind the point below 10, none from 100; a power of ten where that would be 0."""
    if 0 < abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def rows(table: pd.DataFrame, parts: list[str]) -> list[str]:
    """``parts``: the data, and the metrics. A cell: mean [95 % interval] (the paper's figure)."""
    data, wanted = parts[0], [metric.strip() for metric in parts[1].split(" + ")]
    own = table[(table["data"] == data) & table["metric"].isin(wanted)]
    if own.empty:
        return ["*Not reached in this run.*"]
    models = list(dict.fromkeys(own["model"]))
    heads = ["method", *(["model"] if len(models) > 1 else []), *wanted, "n"]
    lines = [_row(heads), _row(["---"] * len(heads))]
    for (model, method), group in own.groupby(["model", "method"], sort=False):
        by_metric = {row["metric"]: row for row in group.to_dict("records")}
        cells = [_cell(by_metric[metric]) if metric in by_metric else "–" for metric in wanted]
        counts = sorted({int(n) for n in group["n"]})
        many = " to ".join(map(str, counts[:: max(1, len(counts) - 1)]))
        lines.append(_row([str(method), *([str(model)] if len(models) > 1 else []), *cells, many]))
    notes = [text for column in ("differs", "note") for text in dict.fromkeys(own[column].dropna())][:6]
    return [*lines, "", f"*{'; '.join([data + ', ' + ', '.join(models), *notes])}.*"]


def _cell(row: Mapping[str, float]) -> str:
    between = f" [{_number(row['low'])}, {_number(row['high'])}]" if np.isfinite(row["low"]) else ""
    paper = f" (paper {_number(row['published'])})" if np.isfinite(row["published"]) else ""
    return _number(row["here"]) + between + paper


def claims(study: str, found_by: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Every sentence of the paper with its figure and its tests, whichever study and run made them; then what was
    tested beside."""
    found = [one | {"study": name.removesuffix(BESIDE)} for name, own in found_by.items() for one in own]
    with CLAIMS.open(encoding="utf-8", newline="") as stream:
        sentences = list(csv.DictReader(stream))
    heads = ["the paper", "its figure", "tested as", "on", "effect", "n", "verdict"]
    lines, stated = [_row(heads), _row(["---"] * len(heads))], set()
    for sentence in sentences:
        tests = [k for k, one in enumerate(found) if sentence["tests"] and _tests(sentence["tests"], one)]
        stated.update(tests)
        if sentence["paper"] != study:
            continue
        said = [f"“{sentence['sentence']}” ({sentence['place']})", sentence["figure"]]
        if not tests:
            told = sentence["untested"] or "not reached"
            lines.append(_row([*said, told, "", "", "", f"**{sentence['answer'] or 'not tested'}**"]))
        for number, k in enumerate(tests):
            lines.append(_row([*(said if number == 0 else ["", ""]), *_tested(found[k])]))
    others = [one for k, one in enumerate(found) if k not in stated and one["study"] == study]
    if others:
        lines += ["", "Tested beside; no sentence of the paper says it:", "", _row(heads[2:]), _row(["---"] * 5)]
        lines += [_row(_tested(one)) for one in others]
    return lines


def _tests(pattern: str, one: Mapping[str, Any]) -> bool:
    """Whether a finding tests the sentence: its claim (and, behind an @, its images) match the pattern."""
    return re.fullmatch(f"(?:{pattern})(?: @.*)?", f"{one['claim']} @{one['data']}") is not None


def _tested(one: Mapping[str, Any]) -> list[str]:
    """How, on what, effect with its interval (above 0: it holds), n, verdict."""
    low, high = (np.nan if one[key] is None else one[key] for key in ("low", "high"))
    between = f" [{_number(low)}, {_number(high)}]" if np.isfinite(low) else ""
    effect = "–" if one["effect"] is None else _number(one["effect"]) + between
    how = one["claim"] + (f" ({one['note']})" if one["note"] else "")
    return [how, f"{one['data']}, {one['model']}", effect, str(one["n"]), f"**{one['verdict']}**"]


def missing(folder: Path) -> list[str]:
    """What was left out and why; steps that were not reached stand together by their images and model, and what the
    paper prints without a figure here is counted."""
    path = folder / "skipped.csv"
    columns = ["nodule_id", "stage", "reason"]
    table = pd.read_csv(path, keep_default_na=False) if path.is_file() else pd.DataFrame(columns=columns)
    printed = table[table["stage"] == "published"]
    late, others = table[table["stage"] == "limit"], table[~table["stage"].isin(["limit", "published"])]
    lines = [f"- {row.nodule_id}: {row.reason}" for row in others.itertuples()]
    by_images: dict[str, dict[str, list[str]]] = {}
    for row in late.itertuples():
        step, _, images = str(row.nodule_id).partition(": ")
        by_images.setdefault(images, {}).setdefault(str(row.reason).partition(" images")[0], []).append(step)
    for images, steps in by_images.items():
        told = "; ".join(f"{count}: {', '.join(names)}" for count, names in steps.items())
        lines.append(f"- {images}, images not reached: {told}")
    if len(printed):
        lines.append(f"- {len(printed)} figures that the paper prints have none of ours beside them in this run")
    return lines or ["Nothing."]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _number(value: float) -> str:
    size = abs(value)
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if size >= 0.001 or size == 0 else f"{value:.1e}"
