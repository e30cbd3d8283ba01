"""Validated configuration: defaults, then a YAML file, then ``--set a.b=c``, then flags; errors name the field.

Each verb of the command line has one pydantic model whose fields are its flags and the keys of its YAML file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lidc_xai.errors import UsageError


class Config(BaseModel):
    """Base of the verbs' configurations. An unknown field is an error, not a silent nothing."""

    model_config = ConfigDict(extra="forbid", validate_default=True, populate_by_name=True)

    out: Path | None = Field(None, description="Folder to write into.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    quiet: bool = Field(False, description="No progress on standard error.")


C = TypeVar("C", bound=BaseModel)


def load_config(
    kind: type[C],
    path: Path | None = None,
    assignments: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> C:
    """Build ``kind`` from a YAML file, ``a.b=c`` assignments and flags, each overriding the one before.

    Raises ``UsageError`` naming the source, the field, what was got and what was wanted.
    """
    values: dict[str, Any] = _read_yaml(path) if path is not None else {}
    for assignment in assignments:
        _assign(values, assignment)
    values.update(flags or {})
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        source = str(path) if path is not None else "options"
        raise UsageError(f"{source}: {_first_problem(kind, error)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the configuration cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: wanted 'field: value' lines, got a {type(values).__name__}")
    return values


def _assign(values: dict[str, Any], assignment: str) -> None:
    import yaml

    name, equals, text = assignment.partition("=")
    if not equals or not name:
        raise UsageError(f"--set {assignment}: wanted field=value, for example --set fit.epochs=10")
    *parents, last = name.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UsageError(f"--set {assignment}: {parent} is a value, not a group of fields")
    try:
        place[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"--set {assignment}: the value is not YAML; put it in quotes") from None


def _first_problem(kind: type[BaseModel], error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _fields_at(kind, first["loc"][:-1]), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(_fields_at(kind, first['loc'][:-1]))}"
        return f"unknown field '{field}'; {hint}{more}"
    if first["type"] == "missing":
        return f"field '{field}' is missing; give it in the file or as --{field.replace('_', '-')}{more}"
    wanted = first["msg"].removeprefix("Value error, ")
    return f"field '{field}': got {first['input']!r}; {wanted[0].lower()}{wanted[1:]}{more}" if field else wanted


def _fields_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        field = kind.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        kind = field.annotation
    return list(kind.model_fields)
