"""``lidc-xai info``: what is installed, which names the other verbs know."""

from __future__ import annotations

import ctypes.util
import json
from collections.abc import Callable
from typing import Any, Literal

import typer
from pydantic import Field

from lidc_xai.commands.common import add_verb, print_table
from lidc_xai.config import Config
from lidc_xai.ratings import RESEARCH_USE_ONLY
from lidc_xai.run import Run, git_revision, versions

Topic = Literal["system", "backbones", "methods", "cohorts"]


class InfoConfig(Config):
    """Print versions and system libraries, or a table of names: backbones, methods, cohorts."""

    topic: Topic = Field("system", description="system, backbones, methods or cohorts.")
    json_: bool = Field(False, alias="json", description="Print JSON.")


def info(config: InfoConfig, run: Run) -> None:
    """Collect and print."""
    found = _TOPICS[config.topic]()
    if config.json_:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    if isinstance(found, dict):
        width = max(map(len, found))
        for key, value in found.items():
            print(f"{key:{width}}  {value}")
        return
    print_table(found)


def _system() -> dict[str, Any]:
    pango = ctypes.util.find_library("pangoft2-1.0")
    return {
        **versions(),
        "git": git_revision() or "no source tree",
        "PDF reports": "yes" if pango else "no: Pango is missing (Debian: libpango-1.0-0 libpangoft2-1.0-0)",
        "note": RESEARCH_USE_ONLY,
    }


def _backbones() -> list[dict[str, Any]]:
    from lidc_xai.models.backbones import BACKBONES

    return [entry.as_row() for entry in BACKBONES.values()]


def _methods() -> list[dict[str, Any]]:
    from lidc_xai.explain.registry import METHODS

    return [
        {
            "name": spec.name,
            "family": spec.family,
            "options": ", ".join(f"{key}={option.default}" for key, option in spec.options.items()),
        }
        for spec in METHODS.values()
    ]


def _cohorts() -> list[dict[str, Any]]:
    from lidc_xai.annotations import COHORTS, select_cohort

    rows = []
    for name in COHORTS:
        labels = select_cohort(name)["label"]
        rows.append(
            {
                "name": name,
                "nodules": len(labels),
                "above 3": int((labels == 1).sum()),
                "below 3": int((labels == 0).sum()),
            }
        )
    return rows


_TOPICS: dict[str, Callable[[], dict[str, Any] | list[dict[str, Any]]]] = {
    "system": _system,
    "backbones": _backbones,
    "methods": _methods,
    "cohorts": _cohorts,
}


def register(app: typer.Typer) -> None:
    """Add this group's verbs."""
    add_verb(app, "info", InfoConfig, info, "lidc-xai info backbones --json", argument="topic")
