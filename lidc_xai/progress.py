"""Progress on standard error: one bar with rate and time left, silent with ``--quiet`` or in a pipe's log."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
_enabled: ContextVar[bool] = ContextVar("lidc_xai_progress", default=False)


@contextmanager
def show_progress(enabled: bool = True) -> Iterator[None]:
    """Show bars inside this block. Library calls are silent unless the caller asks; the command line does."""
    token = _enabled.set(enabled)
    try:
        yield
    finally:
        _enabled.reset(token)


def progress_shown() -> bool:
    """Whether the caller asked for progress (for libraries with bars of their own)."""
    return _enabled.get()


def say(message: str) -> None:
    """One line on standard error, where progress is shown."""
    if _enabled.get():
        print(message, file=sys.stderr, flush=True)


def stop_workers() -> None:
    """Let joblib's worker processes go, where there are any: those that outlive the command warn at its end."""
    if "joblib" in sys.modules:
        from joblib.externals.loky import reusable_executor

        executor = reusable_executor._executor
        if executor is not None:
            executor.shutdown(wait=True)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a bar (done, total, items per minute, time left) where progress is shown."""
    if not _enabled.get():
        yield from items
        return
    from rich import progress
    from rich.console import Console
    from rich.text import Text

    class PerMinute(progress.ProgressColumn):
        def render(self, task: progress.Task) -> Text:
            return Text(f"{task.speed * 60:.0f}/min" if task.speed else "–/min")

    columns = (
        progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn(), PerMinute(),
        progress.TimeRemainingColumn(),
    )  # fmt: skip
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        yield from bar.track(items, total=total, description=description)
