"""Every public name has an example in its docstring, and every example runs and prints what it says."""

from __future__ import annotations

import ast
import doctest
import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import ROOMS

PACKAGE = Path(__file__).resolve().parents[2] / "lidc_xai"
WITHOUT = {
    # What a function returns; its example stands there.
    "BenchmarkRun", "PrepareResult", "DownloadResult", "FoldIds", "Splits", "FitResult", "CrossValidation",
    "SweepResult", "SimilarNodule", "Classifier", "ExplainedImages", "Photo", "ReportResult", "ExportResult",
    # Minutes of work, a cohort, the network, or filled sheets: the pages of docs/ show them.
    "cross_validate", "pretrain", "sweep", "evaluate_predictions", "download",
}  # fmt: skip
"""Public names that need no example of their own."""


def public_names() -> list[tuple[str, str]]:
    """(room, name) of every stub, without importing a room."""
    found = []
    for room in ROOMS:
        for node in ast.parse((PACKAGE / room / "__init__.pyi").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                found += [(room, one.name) for one in node.names]
    return found


@pytest.mark.parametrize(("room", "name"), public_names())
def test_example(room: str, name: str, names: dict[str, Any], tmp_path: Path) -> None:
    thing = getattr(import_module(f"lidc_xai.{room}"), name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return  # a table or a tuple: its comment is no docstring
    globs = {**names, "folder": tmp_path}
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [test for test in finder.find(thing, name, globs=globs) if test.examples]
    assert any(test.name == name for test in examples) or name in WITHOUT, f"{room}.{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    torch.manual_seed(0)
    for test in examples:
        runner.run(test, out=said.append, clear_globs=False)
    assert not runner.failures, "".join(said)
