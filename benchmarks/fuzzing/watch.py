"""One damaged input after the other in a child process, with a limit of time and of memory for each."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from lidc_xai.errors import LidcXaiError

_SILENCE_S = 600.0
"""A child that says nothing for so long hangs without working; one that works too long is ended by its own timer."""


@dataclass(frozen=True)
class Kind:
    """A kind of input. ``make(folder)`` writes a good one, ``damage(folder, rng)`` damages it and says how, and
    ``read(folder)`` is what the package does with it: return, or raise LidcXaiError. ``slow``: cases for one of others.
    """

    make: Callable[[Path], object]
    damage: Callable[[Path, np.random.Generator], str]
    read: Callable[[Path], object]
    slow: int = 1


@dataclass
class Outcome:
    """``read``: cases that were read all the same; ``refused``: by one line of ours; ``failed``: case and reason."""

    read: int = 0
    refused: int = 0
    failed: list[tuple[int, str]] = field(default_factory=list)


def run(kind: Kind, cases: int, seed: int, seconds: float = 5.0, mib: int = 256, first: int = 0) -> Outcome:
    """``cases`` cases of a kind from number ``first`` on; each is seeded by its number and can be repeated alone.

    A case fails where it raises anything but LidcXaiError, takes more than ``seconds`` of processor time, ends the
    process, or reserves more than ``mib`` MiB.
    """
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        good = Path(folder, "good")
        good.mkdir()
        kind.make(good)
        at = first
        while at < first + cases:
            at = _run_child(kind, good, Path(folder, "case"), range(at, first + cases), seed, seconds, mib, outcome)
    return outcome


def _run_child(
    kind: Kind, good: Path, case: Path, numbers: range, seed: int, seconds: float, mib: int, outcome: Outcome
) -> int:
    """Run until all are done or one ends the child; the number of the next case."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_work, args=(kind, good, case, numbers, seed, seconds, mib, send))
    child.start()
    send.close()
    at = numbers.start
    while at < numbers.stop:
        if not receive.poll(_SILENCE_S):
            child.kill()
            outcome.failed.append((at, "hangs"))
            at += 1
            break
        try:
            words = receive.recv()
        except EOFError:
            child.join()
            ended = signal.Signals(-child.exitcode).name if child.exitcode and child.exitcode < 0 else child.exitcode
            reason = f"takes more than {seconds:g} s" if ended == "SIGPROF" else f"the process ended ({ended})"
            outcome.failed.append((at, reason))
            at += 1
            break
        at += 1
        if words == "read":
            outcome.read += 1
        elif words == "refused":
            outcome.refused += 1
        else:
            outcome.failed.append((at - 1, words))
            if words.startswith("reserves"):
                child.kill()
                break
    child.join()
    return at


def _work(
    kind: Kind, good: Path, case: Path, numbers: range, seed: int, seconds: float, mib: int, send: Connection
) -> None:
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _copy(good, case)
    kind.read(case)  # a good one is read, and what it imports and reserves is no case's doing
    start = _peak_mib()
    limit = (_virtual_mib() + 4 * mib) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in numbers:
        _copy(good, case)
        try:
            done = kind.damage(case, np.random.default_rng([seed, number]))
        except Exception as error:  # a fault of the damage, not of the package: said as such
            send.send(f"not damaged: {type(error).__name__}: {error}")
            continue
        signal.setitimer(signal.ITIMER_PROF, seconds)
        words = _outcome(kind, case)
        signal.setitimer(signal.ITIMER_PROF, 0)
        more = _peak_mib() - start
        if more > mib:
            words = f"reserves {more} MiB"
        send.send(words if words in ("read", "refused") else f"{words} [{done}]")


def _outcome(kind: Kind, case: Path) -> str:
    try:
        kind.read(case)
    except LidcXaiError as error:
        return "refused" if "\n" not in str(error) else f"more than one line: {error}"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
    return "read"


def _copy(good: Path, case: Path) -> None:
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(good, case, symlinks=True)


def _peak_mib() -> int:
    return _status("VmPeak")


def _virtual_mib() -> int:
    return _status("VmSize")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) // 1024
    raise RuntimeError(f"/proc/self/status has no {name}")
