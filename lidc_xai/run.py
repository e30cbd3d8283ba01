"""The record of a run: ``run.json`` with the command, versions, seed, device, inputs, time and how it ended.

A folder of results is shared, so the command stands there without the way to its files: base names alone, and nothing
for files of patients' images, whose names may be the patients'.
"""

from __future__ import annotations

import hashlib
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import lidc_xai
from lidc_xai.files import write_json
from lidc_xai.ratings import RESEARCH_USE_ONLY
from lidc_xai.skipped import Skipped

PATIENTS_FILES = ("ct", "dicom", "points", "mask", "path")
"""Flags and fields whose value is a file with patients' data."""
_SWITCHES = ("quiet", "components", "keep_ids")
LIBRARIES = ("torch", "torchvision", "timm", "monai", "lightning", "numpy", "simpleitk", "pydicom", "pylidc")


@dataclass
class Run:
    """One call of a verb. ``results`` is what the verb found worth keeping; ``skipped`` what it left out."""

    verb: str
    argv: list[str]
    config: dict[str, Any]
    out: Path | None = None
    results: dict[str, Any] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.perf_counter)

    @property
    def name(self) -> str:
        """What was called: ``lidc-xai report``, or a script's own name."""
        return self.verb if self.argv[:1] == [self.verb] else f"lidc-xai {self.verb}"

    def write(self, status: str) -> None:
        """Write ``out/run.json`` (nothing where the verb has no folder)."""
        if self.out is None or not self.out.is_dir():
            return
        config = shareable_config(self.config)
        write_json(
            self.out / "run.json",
            {
                "verb": self.verb,
                "status": status,
                "argv": shareable_argv(self.argv),
                "config": config,
                "config_sha256": hashlib.sha256(repr(sorted(config.items())).encode()).hexdigest(),
                "started": self.started.isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - self.clock, 2),
                "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "versions": versions(),
                "git": git_revision(),
                "platform": platform.platform(),
                "python": platform.python_version(),
                "skipped": len(self.skipped),
                "results": self.results,
                "note": RESEARCH_USE_ONLY,
            },
        )


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that decide its results, without importing them."""
    of_packages = {"lidc_xai": lidc_xai.__version__}
    for name in LIBRARIES:
        try:
            of_packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            of_packages[name] = "absent"
    return of_packages


def git_revision() -> str | None:
    """Commit of the source tree that the package runs from, ``+changes`` where it differs; None where it is no tree."""
    root = Path(lidc_xai.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def current_argv() -> list[str]:
    """The command as typed, with the program's bare name, and of every file its base name."""
    return ["lidc-xai", *shareable_argv(sys.argv[1:])]


def shareable_argv(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command as they may stand in a folder that is given to others.

    >>> shareable_argv(["prepare", "--ct", "/data/Doe^John", "--out=runs/mine", "--size-mm", "32"])
    ['prepare', '--ct', '<ct>', '--out=mine', '--size-mm', '32']
    """
    shown: list[str] = []
    field = ""
    for place, text in enumerate(arguments):
        flag, equals, value = text.partition("=")
        if text.startswith("--"):
            name = flag.removeprefix("--").replace("-", "_")
            shown.append(f"{flag}={_shareable(name, value)}" if equals else text)
            field = "" if equals or name in _SWITCHES else name
        elif field in ("set", "") and equals:  # --set field=value
            shown.append(f"{flag}={_shareable(flag, value)}")
            field = ""
        else:
            positional = "path" if not field and place and arguments[0] == "check" else ""
            shown.append(_shareable(field or positional, text))
            field = ""
    return shown


def shareable_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """A verb's configuration with base names for paths, and nothing for files with patients' data."""
    return {name: _shareable(name, value) for name, value in values.items()}


def _shareable(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shareable(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shareable(name, item) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if name in PATIENTS_FILES:
        return f"<{name}>"
    return ",".join(_base_name(part) for part in value.split(","))


def _base_name(text: str) -> str:
    """What follows the last separator of a path; a text without one is given back as it is."""
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if re.search(r"[/\\]", text) else text
