"""The studies behind this project, all four, on real photographs, and one page with what came out.

    python pipelines/four_papers.py --photographs photos --weights weights --limit 180 --out runs/four \\
        --page docs/studies.md

CDAM (arXiv 2312.02364), contrast (2501.11096), ViT-ReciproCAM (2310.02588), softmax (2306.13197): each with its own
configuration in ``--configs``, in OUT/<study>, features in OUT/features. ``--limit``: minutes for all of them, what is
left divided evenly; the same command goes on where the last one stopped. ``--page``: the page to write, from the text
studies/page.md and the runs' tables; the same runs give the same page.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import study_cdam
import study_contrastive
import study_reciprocam
import study_softmax
from pydantic import Field
from studies.page import BESIDE, write_page
from studies.study import main as run_study

from lidc_xai.commands.common import EXIT_INTERRUPTED, EXIT_TERMINATED, need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.errors import LidcXaiError, UsageError
from lidc_xai.progress import say
from lidc_xai.run import Run
from lidc_xai.skipped import Skipped, write_skipped

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
DONE, PARTLY = 0, 3
INTERRUPTED = (EXIT_INTERRUPTED, EXIT_TERMINATED)


class FourPapers(Config):
    """Fields of the script."""

    photographs: Path | None = Field(None, description="Folder with msrc/ and ilsvrc_val/.")
    weights: list[str] = Field([], description="MODEL=FILE, or a folder of weights files.")
    images: Path | None = Field(None, description="ImageNet's validation images, for the papers' own models.")
    limit: float | None = Field(None, gt=0, description="Minutes for all studies.")
    configs: Path = Field(CONFIGS, description="Folder with study_<name>.yaml (configs/gpu: 224 px, larger samples).")
    only: list[str] = Field([], description="Of cdam, contrastive, reciprocam, softmax; empty: all.")
    page: Path | None = Field(None, description="Markdown page to write.")
    beside: Path | None = Field(None, description="Another run's --out: it fills the marks of STUDY_beside.")


def studies() -> dict[str, Callable[[Sequence[str]], int]]:
    """Name → the study with the arguments of its script."""
    others = {
        "contrastive": (study_contrastive.Contrastive, study_contrastive),
        "reciprocam": (study_reciprocam.Reciprocam, study_reciprocam),
        "softmax": (study_softmax.Softmax, study_softmax),
    }
    found: dict[str, Callable[[Sequence[str]], int]] = {"cdam": study_cdam.run}
    for name, (kind, module) in others.items():
        call = partial(
            run_study, kind, module.work, name=f"study_{name}", about=module.__doc__, source=module.SOURCE,
            models=module.models,
        )  # fmt: skip
        found[name] = lambda arguments, call=call: call(arguments=arguments)  # type: ignore[misc]
    return found


def work(config: FourPapers, run: Run) -> None:
    """Every study, then the page."""
    out = need_out(config)
    every = studies()
    unknown = [name for name in config.only if name not in every]
    if unknown:
        raise UsageError(f"only: {unknown[0]!r} is none of {', '.join(every)}")
    if config.page is not None and not config.page.parent.is_dir():
        raise UsageError(f"--page {config.page}: no such folder")
    chosen = config.only or list(every)
    start = time.monotonic()
    for number, name in enumerate(chosen):
        arguments = [
            "--config",
            str(config.configs / f"study_{name}.yaml"),
            "--out",
            str(out / name),
            "--seed",
            str(config.seed),
            "--device",
            config.device,
        ]
        arguments += ["--features", str(out / "features"), *(["--quiet"] if config.quiet else [])]
        for option in ("photographs", "images"):
            if (path := getattr(config, option)) is not None:
                arguments += [f"--{option}", str(path)]
        for weights in config.weights:
            arguments += ["--weights", weights]
        if config.limit is not None:
            left = config.limit - (time.monotonic() - start) / 60
            arguments += ["--minutes", f"{max(left, 1e-3) / (len(chosen) - number):.4g}"]
        code = every[name](arguments)
        if code in INTERRUPTED:
            raise KeyboardInterrupt
        say(
            f"{name}: done"
            + ("" if code == DONE else ", with something left out" if code == PARTLY else f", failed ({code})")
        )
        if code not in (DONE, PARTLY):
            run.skipped.append(Skipped(name, "study", f"ended with exit code {code}; its line stands above"))
        elif code == PARTLY:
            run.skipped.append(Skipped(name, "study", f"left something out: {out / name / 'skipped.csv'}"))
    write_skipped(out, run.skipped)
    if len([row for row in run.skipped if "exit code" in row.reason]) == len(chosen):
        raise LidcXaiError("no study could run; see the lines above")
    if config.page is not None:
        folders = {name: out / name for name in every}
        if config.beside is not None:
            folders |= {f"{name}{BESIDE}": config.beside / name for name in every}
        say(f"{config.page}: {write_page(config.page, folders)} tables written")


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("four_papers", FourPapers, work, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
