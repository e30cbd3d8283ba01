"""``lidc-xai info``: what is installed, which names the other verbs know."""

from __future__ import annotations

import ctypes.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from lidc_xai.commands.common import print_table, verb
from lidc_xai.config import Config
from lidc_xai.errors import DataError, UsageError
from lidc_xai.ratings import RESEARCH_USE_ONLY
from lidc_xai.run import Run, git_revision, versions

Topic = Literal["system", "backbones", "methods", "cohorts"]


class InfoConfig(Config):
    """Print versions and system libraries, or a table of names: backbones, methods (of a model: what it can do and why
    not the rest), cohorts.
    """

    topic: Topic = Field("system", description="system, backbones, methods or cohorts.")
    json_: bool = Field(False, alias="json", description="Print JSON.")
    model: str | None = Field(
        None, description="With methods: a saved nodule model, a timm or torchvision name, or a transformers folder."
    )


@verb("lidc-xai info backbones --json", argument="topic")
def info(config: InfoConfig, run: Run) -> None:
    """Collect and print."""
    if config.model is not None and config.topic != "methods":
        raise UsageError(f"--model goes with info methods, not with info {config.topic}")
    rows = _TOPICS[config.topic]() if config.model is None else _methods_of(config.model)
    if config.json_:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    if isinstance(rows, dict):
        width = max(map(len, rows))
        for key, value in rows.items():
            print(f"{key:{width}}  {value}")
        return
    print_table(rows)


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


def _methods_of(name: str) -> list[dict[str, Any]]:
    """Every method, whether the model can do it, and why not."""
    from lidc_xai.explain import list_methods, refusals

    no = refusals(_model(name))
    return [
        {"name": method, "works": "no" if method in no else "yes", "why not": no.get(method, "")}
        for method in list_methods()
    ]


def _model(name: str) -> Any:
    """A saved model with its weights; of a mere name the architecture, whose weights do not matter here."""
    if (Path(name) / "config.json").is_file() and not (Path(name) / "model.json").is_file():
        return _transformers_model(Path(name))
    from lidc_xai.models import load_model
    from lidc_xai.models.saved import is_adapter, member_folders, shipped_models

    if Path(name).exists() or "/" in name or name in shipped_models():
        member = member_folders(name)[0]
        if not is_adapter(member):
            return load_model(member)
        name = json.loads((member / "model.json").read_text(encoding="utf-8"))["recipe"]["backbone"]
    import timm
    import torch
    import torchvision

    from lidc_xai.imagenet.classifier import find_architecture
    from lidc_xai.models import build_model
    from lidc_xai.models.backbones import BACKBONES

    if name in BACKBONES:
        return build_model(name, outputs=["malignancy"])
    library, short = find_architecture(name)
    model: Any = (
        torchvision.models.get_model(short, weights=None) if library == "torchvision" else timm.create_model(short)
    )
    if getattr(model, "num_classes", None) == 0:
        model.reset_classifier(2)
    for parameter in model.parameters():
        if not parameter.detach().any():  # a head that begins at zero reads nothing
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


def _transformers_model(folder: Path) -> Any:
    try:
        from transformers import AutoModelForImageClassification  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise UsageError(f"{folder} is a transformers model; install transformers to read it") from None
    try:
        return AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        words = " ".join(str(error).split())
        raise DataError(f"{folder} cannot be read as an image classifier of transformers: {words[:200]}") from error


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
