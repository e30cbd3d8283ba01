"""Damage to bytes and text: what disks, transfers, other people's writers and hostile hands do. All of it seeded."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

Rng = np.random.Generator
_EXTREME_WORDS = (
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\0\0\0\0",
    b"\xfe\xff\xff\xff",
    b"\1\0\0\0",
)
_EXTREME_NUMBERS = (
    "-3", "0", "1e9", "-1e30", "nan", "inf", "99999999999999999999", "65535", "2147483648", "0.0000001", "", "x", "1.5",
    "1\\2\\3", "-0", "１２", "1_0",
)  # fmt: skip
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def flip(data: bytearray, rng: Rng, at: int) -> None:
    """One bit."""
    data[at] ^= 1 << int(rng.integers(8))


def scramble(data: bytearray, rng: Rng, at: int) -> None:
    """Up to 16 random bytes."""
    count = min(int(rng.integers(1, 17)), len(data) - at)
    data[at : at + count] = rng.bytes(count)


def extreme(data: bytearray, rng: Rng, at: int) -> None:
    """Four bytes that mean a length or a size nobody has."""
    word = _EXTREME_WORDS[int(rng.integers(len(_EXTREME_WORDS)))]
    data[at : at + 4] = word if rng.random() < 0.5 else word[::-1]


def insert(data: bytearray, rng: Rng, at: int) -> None:
    """A few bytes too many, so that all others shift."""
    data[at:at] = rng.bytes(int(rng.integers(1, 9)))


def delete(data: bytearray, rng: Rng, at: int) -> None:
    """A few bytes lost."""
    del data[at : at + int(rng.integers(1, 9))]


def truncate(data: bytearray, rng: Rng, at: int) -> None:
    """All that follows lost."""
    del data[at:]


def repeat(data: bytearray, rng: Rng, at: int) -> None:
    """A block written over another place, as a bad disk does."""
    block = bytes(data[at : at + int(rng.integers(8, 257))])
    to = int(rng.integers(len(data)))
    data[to : to + len(block)] = block


BYTES: tuple[Callable[[bytearray, Rng, int], None], ...] = (
    flip, flip, scramble, extreme, extreme, insert, delete, truncate, repeat,
)  # fmt: skip


def damage_bytes(path: Path, rng: Rng, head: int | None = None) -> str:
    """Damage a file one to four times, in its first ``head`` bytes; says what was done."""
    data = bytearray(path.read_bytes())
    words = []
    for _ in range(int(rng.integers(1, 5))):
        if not data:
            break
        change = BYTES[int(rng.integers(len(BYTES)))]
        at = int(rng.integers(min(len(data), head or len(data))))
        change(data, rng, at)
        words.append(f"{change.__name__} at {at}")
    path.write_bytes(bytes(data))
    return f"{path.name}: {', '.join(words)}"


def damage_text(path: Path, rng: Rng, keep: Callable[[str], bool] = lambda line: False) -> str:
    """Damage a text file by its numbers, lines and letters; lines for which ``keep`` is true stay."""
    lines = path.read_bytes().decode("latin-1").split("\n")
    words = []
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        if keep(lines[at]):
            continue
        change = int(rng.integers(6))
        if change <= 1:
            numbers = list(_NUMBER.finditer(lines[at]))
            if numbers:
                found = numbers[int(rng.integers(len(numbers)))]
                number = _EXTREME_NUMBERS[int(rng.integers(len(_EXTREME_NUMBERS)))]
                lines[at] = lines[at][: found.start()] + number + lines[at][found.end() :]
                words.append(f"line {at}: {number!r} for {found.group()}")
        elif change == 2:
            words.append(f"line {at} lost: {lines[at][:40]!r}")
            del lines[at]
        elif change == 3:
            lines.insert(at, lines[int(rng.integers(len(lines)))])
            words.append(f"line {at} twice")
        elif change == 4:
            lines[at] = lines[at] * int(rng.integers(2, 200))
            words.append(f"line {at} many times over")
        else:
            cut = int(rng.integers(len(lines[at]) + 1))
            lines[at] = lines[at][:cut] + "".join(map(chr, rng.integers(1, 256, 5))) + lines[at][cut:]
            words.append(f"letters in line {at}")
        if not lines:
            break
    path.write_bytes("\n".join(lines).encode("latin-1", "replace"))
    return f"{path.name}: {'; '.join(words) or 'nothing'}"


def pick(values: tuple, rng: Rng):  # type: ignore[no-untyped-def, type-arg]
    """One of several, any of them as likely."""
    return values[int(rng.integers(len(values)))]
