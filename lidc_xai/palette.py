"""The one palette of signed maps: blue against, orange for, transparent at zero; colour-blind safe.

Strength shows as opacity, so that what lies under a map stays visible where the model saw little.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LEVELS = 127
"""Steps on each side of zero."""
UNSTABLE_GREY = 150
"""Of patches whose sign another training might not draw again; as see-through as their strength."""
_NEGATIVE = ((120, 200, 255), (0, 92, 230))  # weak and strong
_POSITIVE = ((255, 196, 100), (236, 84, 0))
_MAX_ALPHA = 0.88


def signed_colour(strength: float) -> tuple[int, int, int, float]:
    """Red, green, blue (0 to 255) and opacity (0 to 1) of a signed strength in −1 … 1."""
    size = min(abs(strength), 1.0)
    weak, strong = _POSITIVE if strength > 0 else _NEGATIVE
    red, green, blue = (round(a + (b - a) * size) for a, b in zip(weak, strong, strict=True))
    return red, green, blue, _MAX_ALPHA * size


def palette() -> list[list[int]]:
    """Red, green, blue, opacity (0 to 255) of the 255 levels from −1 to +1."""
    colours = [signed_colour((step - LEVELS) / LEVELS) for step in range(2 * LEVELS + 1)]
    return [[*colour[:3], round(255 * colour[3])] for colour in colours]


def levels_of(strength: NDArray) -> NDArray[np.uint8]:
    """The number of the palette's level for each signed strength in −1 … 1.

    >>> levels_of(np.array([-1.0, 0.0, 1.0, 7.0])).tolist()
    [0, 127, 254, 254]
    """
    return (np.round(np.clip(strength, -1, 1) * LEVELS) + LEVELS).astype(np.uint8)
