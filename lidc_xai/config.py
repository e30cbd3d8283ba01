"""Validated configuration: defaults, then a YAML file, then ``--set a.b=c``, then flags; errors name the field.

Each verb of the command line has one pydantic model whose fields are its flags and the keys of its YAML file.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lidc_xai.errors import UsageError


class Config(BaseModel):
    """Base of the verbs' configurations. An unknown field is an error, not a silent nothing."""

    model_config = ConfigDict(extra="forbid", validate_default=True, populate_by_name=True)

    out: Path | None = Field(None, description="Folder to write into.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    seed: int = Field(0, ge=0, description="Seed of everything random.")
    quiet: bool = Field(False, description="No progress on standard error.")


class Options(BaseModel):
    """Base of groups of options inside a configuration. An unknown field is an error, so is a value out of range."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """The same as the constructor, with a one-line ``UsageError`` that names the field."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(f"option {where}: {first['msg']}, got {first['input']!r}") from error


C = TypeVar("C", bound=BaseModel)

_MOST_YAML = 2**17
_MOST_VALUES = 100_000
_DEEPEST_YAML = 50
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 200


def load_config(
    kind: type[C],
    path: Path | None = None,
    assignments: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    verbs: Mapping[str, type[BaseModel]] | None = None,
) -> C:
    """Build ``kind`` from a YAML file, ``a.b=c`` assignments and flags, each overriding the one before. ``verbs``: the
    configurations of all verbs by name, so that a file that is another verb's is told so.

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
        others = [name for name, other in (verbs or {}).items() if set(values) <= set(other.model_fields)]
        raise UsageError(f"{source}: {_first_problem(kind, error, others)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            text = stream.read(_MOST_YAML + 1).decode("utf-8")
    except OSError as error:
        raise UsageError(f"{path}: the configuration cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not YAML: {error}") from None
    values = _load_yaml(text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: wanted 'field: value' lines, got a {type(values).__name__}")
    return {str(name): value for name, value in values.items()}


def _load_yaml(text: str, source: str) -> Any:
    """The value of a YAML text that is no larger than a configuration: neither written nor through its aliases."""
    import yaml

    if len(text) > _MOST_YAML:
        raise UsageError(f"{source}: is longer than {_MOST_YAML // 1024} KiB; a configuration is not")
    try:
        brackets = (1 if mark in "[{" else -1 for mark in re.findall(r"[][{}]", text))
        if max(accumulate(brackets, initial=0)) > _DEEPEST_YAML:
            raise RecursionError  # the parser's time grows with the square of the depth
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        if _yaml_size(node, {}, 0) > _MOST_VALUES:
            raise UsageError(f"{source}: its aliases repeat more than {_MOST_VALUES} values")
        loader = yaml.SafeLoader("")
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # also a date or a key that is none
        raise UsageError(f"{source}: is not YAML: {error}") from None
    except RecursionError:
        raise UsageError(f"{source}: is nested more than {_DEEPEST_YAML} levels deep") from None


def _yaml_size(node: Any, known: dict[int, int], depth: int) -> int:
    """Values below a node, those behind an alias counted every time; RecursionError where it is too deep."""
    if depth > _DEEPEST_YAML:
        raise RecursionError
    if id(node) not in known:
        parts = node.value if isinstance(node.value, list) else []
        children = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_yaml_size(child, known, depth + 1) for child in children)
    return known[id(node)]


def _assign(values: dict[str, Any], assignment: str) -> None:
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
        place[last] = _load_yaml(text, f"--set {name}")
    except UsageError:
        raise UsageError(f"--set {_SHORT.repr(assignment)}: the value is not YAML; put it in quotes") from None


def _first_problem(kind: type[BaseModel], error: ValidationError, others: Sequence[str] = ()) -> str:
    """``others``: verbs that know every field given."""
    problems = error.errors(include_url=False)
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _fields_at(kind, first["loc"][:-1]), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(_fields_at(kind, first['loc'][:-1]))}"
        if others and len(first["loc"]) == 1:
            hint = f"the fields given are those of {' and '.join(others)}"
        return f"unknown field '{field}'; {hint}{more}"
    if first["type"] == "missing":
        return f"field '{field}' is missing; give it in the file or as --{field.replace('_', '-')}{more}"
    wanted = first["msg"].removeprefix("Value error, ")
    return (
        f"field '{field}': got {_SHORT.repr(first['input'])}; {wanted[0].lower()}{wanted[1:]}{more}"
        if field
        else wanted
    )


def _fields_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        field = kind.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        kind = field.annotation
    return list(kind.model_fields)
