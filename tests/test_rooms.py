"""The rooms stand in an order and import downwards only; no two files import each other, by whatever way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ORDER = (
    "annotations", "imaging", "simulate", "models", "explain", "data", "evaluation", "imagenet", "training", "nodules",
    "reporting", "commands",
)  # fmt: skip
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "lidc_xai").rglob("*.py")
}
PUBLIC = {
    (f"lidc_xai.{stub.parent.name}", name.asname or name.name): f"lidc_xai.{stub.parent.name}.{node.module}"
    for stub in (ROOT / "lidc_xai").glob("*/__init__.pyi")
    for node in ast.parse(stub.read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for name in node.names
}
"""(room, public name) -> the module that has it: rooms load lazily."""


def imported(path: Path) -> Iterator[str]:
    """Modules of the package that a file names, inside functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lidc_xai"):
            for name in node.names:
                module = f"{node.module}.{name.name}"
                yield module if module in FILES else PUBLIC.get((node.module, name.name), node.module)


def test_no_file_imports_itself_by_way_of_others_and_no_room_one_above_it() -> None:
    graph = {module: set(imported(path)) for module, path in FILES.items()}
    assert sum(map(len, graph.values())) > 1000
    TopologicalSorter(graph).prepare()  # raises CycleError
    place = {room: number for number, room in enumerate(ORDER)}
    assert {path.parent.name for path in (ROOT / "lidc_xai").glob("*/__init__.py")} == set(ORDER)
    stands = {module: place.get(module.removeprefix("lidc_xai.").split(".")[0], len(ORDER)) for module in graph}
    ground = {module for module, number in stands.items() if number == len(ORDER)}
    arrows = [(module, other) for module, others in graph.items() for other in others - ground]
    assert [(module, other) for module, other in arrows if stands[other] > stands[module]] == []
