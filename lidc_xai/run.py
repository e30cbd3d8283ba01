"""The record of a run: ``run.json`` with the command, versions, seed, device, inputs, time and how it ended."""

from __future__ import annotations

import hashlib
import platform
import resource
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import lidc_xai
from lidc_xai.files import write_json
from lidc_xai.ratings import RESEARCH_USE_ONLY
from lidc_xai.skipped import Skipped

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

    def write(self, status: str) -> None:
        """Write ``out/run.json`` (nothing where the verb has no folder)."""
        if self.out is None or not self.out.is_dir():
            return
        write_json(
            self.out / "run.json",
            {
                "verb": self.verb,
                "status": status,
                "argv": self.argv,
                "config": self.config,
                "config_sha256": hashlib.sha256(repr(sorted(self.config.items())).encode()).hexdigest(),
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
    found = {"lidc_xai": lidc_xai.__version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


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
    """The command as typed, with the program's bare name instead of its path."""
    return ["lidc-xai", *sys.argv[1:]]
