"""One chest: its size and place, and signed distances (mm, negative inside) of its parts at given points,
and the search for a chest whose lungs hold the nodules.

A template in patient axes. ``u`` is the height along the body: 0 at the top of the scan, 1 at its bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lidc_xai.simulate.grid import IMAGE_PIXELS, Floats

HILUM_U = 0.42
"""Height along the body where the large vessels enter the lungs."""
RIB_PITCH_MM = 27.0
RIB_DROP_MM = 95.0
"""Distance between ribs in z, and how far a rib comes down on its way from the spine to the front."""
CHESTS = 120
"""Chests that are tried at most."""


@dataclass(frozen=True, eq=False)
class Thorax:
    """Position and size of one chest.

    ``centre``: (x, y) of the rib cage. ``half``: half width and half depth of its inside. ``top_mm``, ``bottom_mm``: z
    of the scan's ends. ``wall``: thickness of the chest wall (side, front and back). ``bulges``: (n, 4) x, y, z, radius
    of balls that are lung whatever the template says. ``rib_phase``: 0 to 1. ``heart``: size, 1 is average.
    ``waves``: (n, 6) wave vector (3), phase, and displacement in x and y, in mm: no chest is symmetric.
    """

    centre: tuple[float, float]
    half: tuple[float, float]
    top_mm: float
    bottom_mm: float
    wall: tuple[float, float]
    rib_phase: float
    heart: float
    bulges: NDArray[np.float64]
    waves: NDArray[np.float64]

    @property
    def length_mm(self) -> float:
        """Distance from the bottom to the top of the scan."""
        return max(self.top_mm - self.bottom_mm, 1.0)

    @property
    def hilum_z(self) -> float:
        """z where the large vessels enter the lungs."""
        return self.top_mm - HILUM_U * self.length_mm


class Tissues:
    """One chest seen at points ``x``, ``y``, ``z`` (mm, any shapes that broadcast); each field is computed once."""

    def __init__(self, thorax: Thorax, x: Floats, y: Floats, z: Floats) -> None:
        self.thorax = thorax
        self._points = (x, y, z)
        shift_x = shift_y = np.float32(0)
        for kx, ky, kz, phase, ax, ay in thorax.waves.tolist():
            wave = np.sin(kx * x + ky * y + kz * z + phase)
            shift_x, shift_y = shift_x + ax * wave, shift_y + ay * wave
        self.dx, self.dy = x - thorax.centre[0] + shift_x, y - thorax.centre[1] + shift_y
        self.z, self.u = z, (thorax.top_mm - z) / thorax.length_mm

    @property
    def _depth(self) -> float:
        return self.thorax.half[1]

    @cached_property
    def cage(self) -> Floats:
        """Inside of the rib cage, narrowing towards the top of the chest."""
        u = np.clip(self.u, 0.0, 0.62)
        narrow = np.sqrt(1 - ((0.62 - u) / 0.665) ** 2)
        return _oval(self.dx, self.dy, self.thorax.half[0] * narrow, self._depth * narrow**0.75, 2.3)

    @cached_property
    def body(self) -> Floats:
        """Inside of the skin."""
        a, b = self.thorax.half[0] + self.thorax.wall[0], self._depth + self.thorax.wall[1]
        breast = 8 * np.exp(-(((np.abs(self.dx) - 75) / 38) ** 2) - ((self.u - 0.5) / 0.25) ** 2) * (self.dy < 0)
        return _oval(self.dx, self.dy - 3, a, b, 2.35) - breast

    @cached_property
    def _ripple(self) -> Floats:
        """Unevenness between muscles and fat."""
        x, y, z = self._points
        return 1.6 * np.sin(x / 5.1 + 0.7 * np.sin(y / 7.3 + z / 19)) * np.sin(y / 6.1 + z / 23)

    @cached_property
    def organs(self) -> Floats:
        """Heart and great vessels: what takes up contrast agent."""
        dx, dy, u = self.dx, self.dy, self.u
        arch = _turned(dx - 5, dy - 0.1 * self._depth, 1.15)
        return np.minimum.reduce(
            np.broadcast_arrays(
                _oval(dx - 17 + 3 * u, dy - self._depth * 0.5, 12.5, 12.5) + _only(u, 0.26, 1.2),
                _oval(dx + 10, dy + 0.2 * self._depth, 16.5, 17.0) + _only(u, 0.27, 0.55),
                _oval(*arch, 37.0, 11.0) + _only(u, 0.215, 0.27),
                _oval(dx - 22 - 40 * (u - 0.4), dy + 6 - 40 * (u - 0.4), 12.0, 22.0) + _only(u, 0.34, 0.45),
                _oval(dx + 12, dy - 6, 26.0, 8.5) + _only(u, 0.395, 0.44),
                _oval(dx + 27, dy + 0.12 * self._depth, 8.0, 9.5) + _only(u, 0.2, 0.52),
                *(_oval(dx - sx, dy + 8, 5.5, 5.5) + _only(u, -0.2, 0.23) for sx in (-16, 3, 19)),
                self._heart,
            )
        )

    @property
    def _heart(self) -> Floats:
        size = self.thorax.heart * np.sqrt(np.clip(1 - ((self.u - 0.66) / 0.22) ** 2, 0.0, 1.0)) + 1e-3
        x, y = _turned(self.dx - 20, self.dy + self._depth * 0.24, 0.45)
        return _oval(x, y, 60 * size, 44 * size)

    @cached_property
    def mediastinum(self) -> Floats:
        """Everything between the lungs, the spine's bulge and the organs included."""
        dx, dy, u, depth = self.dx, self.dy, self.u, self._depth
        column = _oval(dx - 3, dy + 0.06 * depth, 24 + 6 * np.exp(-(((u - 0.4) / 0.15) ** 2)), 0.56 * depth)
        line = _oval(dx - 2, dy + 0.72 * depth, 5 + 4 * u, 0.36 * depth)
        spine = _oval(dx, dy - 0.86 * depth, 27.0, 29.0)
        joined = _smooth_min(_smooth_min(column, self.organs - 2.5, 10.0), line, 14.0)
        return _smooth_min(joined, spine, 12.0) + 0.5 * self._ripple

    @cached_property
    def diaphragm(self) -> Floats:
        """Below the two domes of the diaphragm (negative there)."""
        length = self.thorax.length_mm
        right, left = (
            height * np.exp(-((self.dx - side) ** 2 + (self.dy + 5) ** 2) / (2 * 42.0**2))
            for side, height in ((-58, 52), (58, 40))
        )
        return self.z - (self.thorax.bottom_mm + 0.05 * length + np.minimum(right + left, 0.3 * length))

    @cached_property
    def lungs(self) -> Floats:
        """Both lungs."""
        inside = np.maximum(np.maximum(self.cage, -self.mediastinum), -self.diaphragm)
        x, y, z = self._points
        for bx, by, bz, radius in self.thorax.bulges:
            ball = np.sqrt((x - bx) ** 2 + (y - by) ** 2 + (z - bz) ** 2) - radius
            inside = _smooth_min(inside, ball, 5.0)
        return inside

    @cached_property
    def bones(self) -> Floats:
        """Ribs, sternum, spine, shoulder blades."""
        dx, dy, u = self.dx, self.dy, self.u
        front = np.arctan2(np.abs(dx), dy) / np.pi  # 0 at the spine, 1 at the sternum
        turn = (self.z + RIB_DROP_MM * front**1.25) / RIB_PITCH_MM + self.thorax.rib_phase
        along_z = (turn - np.round(turn)) * RIB_PITCH_MM * 0.75
        ribs = np.sqrt(((self.cage - 6.5) * 1.7) ** 2 + along_z**2) - 6.2
        ribs = np.maximum(ribs, (front - 0.83) * 120)  # cartilage joins them to the sternum
        sternum = np.maximum(_oval(dx, dy + self._depth + 9, 19.0, 6.0), (u - 0.72) * 200)
        blade = _turned(np.abs(dx) - self.thorax.half[0] * 0.93, dy - self._depth * 0.80, -0.75)
        shoulder = _oval(*blade, 34 * np.clip(1.5 - 2 * u, 0.02, 1), 3.6)
        return np.minimum.reduce(np.broadcast_arrays(ribs, sternum, np.maximum(self._spine, self.body + 5), shoulder))

    @property
    def _spine(self) -> Floats:
        dx, dy = self.dx, self.dy - 0.86 * self._depth
        arch = np.maximum(_oval(dx, dy - 25, 15.0, 13.0), -_oval(dx, dy - 24, 9.0, 8.0))
        sideways, backwards = _oval(np.abs(dx) - 22, dy - 22, 14.0, 4.5), _oval(dx, dy - 36, 3.2, 10.0)
        return np.minimum.reduce([_oval(dx, dy, 19.0, 16.0, 2.4), arch, sideways, backwards])

    @cached_property
    def muscles(self) -> Floats:
        """Muscles of the chest wall and the back."""
        dx, dy, u = self.dx, self.dy, np.clip(self.u, 0, 1)
        side = _turned(np.abs(dx) - self.thorax.half[0] * 0.95, dy - self._depth * 0.74, -0.72)
        all_of_them = np.minimum.reduce(
            np.broadcast_arrays(
                self.cage - 12,
                _oval(np.abs(dx) - 27, dy - self._depth - 24, 24.0, 15.0),
                _oval(*side, 42 - 8 * u, 16 - 6 * u),
                _oval(np.abs(dx) - 62, dy + self._depth + 6, 44 - 14 * u, 15 - 8 * u),
            )
        )
        return np.maximum(all_of_them + self._ripple, self.body + 4)

    @cached_property
    def airways(self) -> Floats:
        """Lumen of the trachea and the main bronchi, as far as they lie in the mediastinum."""
        dx, dy, u = self.dx, self.dy, self.u
        away = np.clip(u - 0.345, 0.0, 0.12)
        trachea = _oval(dx + 2, dy - 4 - 12 * np.clip(u, 0, 0.4), 8.5, 8.0) + _only(u, -0.2, 0.345)
        left, right = (_oval(dx + 2 - side * 240 * away, dy - 10, 6.5, 6.0) for side in (1.0, -1.0))
        return np.minimum(trachea, np.minimum(left, right) + _only(u, 0.33, 0.46))

    @cached_property
    def table(self) -> Floats:
        """The table under the patient: signed distance to its middle."""
        top = self.thorax.centre[1] + self._depth + self.thorax.wall[1] + 14
        x, y, _ = self._points
        return y - top + 0.0011 * x**2


def lung_distance(thorax: Thorax, points: Floats) -> Floats:
    """Signed distance to the lungs (mm, negative inside) of points (n, 3)."""
    return Tissues(thorax, *points.T).lungs


def _oval(dx: Floats, dy: Floats, a: Floats | float, b: Floats | float, power: float = 2.0) -> Floats:
    """Distance along the ray from the middle to an oval of half axes a, b (a superellipse for ``power`` > 2)."""
    dx, dy = np.abs(dx) + 1e-3, np.abs(dy)  # never exactly in the middle, where the ray has no direction
    x, y = dx / a, dy / b
    level = np.sqrt(x * x + y * y) if power == 2 else (x**power + y**power) ** (1 / power)
    return np.sqrt(dx * dx + dy * dy) * (1 - 1 / level)


def _turned(dx: Floats, dy: Floats, angle: float) -> tuple[Floats, Floats]:
    return dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)


def _only(u: Floats, first: float, last: float) -> Floats:
    """Nothing between two heights, a growing distance outside them."""
    return 400 * np.maximum(np.maximum(first - u, u - last), 0.0)


def _smooth_min(first: Floats, second: Floats, width: float) -> Floats:
    """Union of two shapes whose meeting edge is rounded over ``width`` mm."""
    h = np.clip(0.5 + 0.5 * (second - first) / width, 0.0, 1.0)
    return second + (first - second) * h - width * h * (1 - h)


def fit_thorax(
    centres_mm: Sequence[NDArray[np.float64]], radii_mm: Sequence[float], ends_mm: tuple[float, float],
    spacing_mm: float, rng: np.random.Generator,
) -> Thorax:  # fmt: skip
    """A chest for a field of view of 512 x ``spacing_mm`` in which every ball (centre, radius) lies in a lung.

    Chests are drawn around the average one, further and further out, until one covers the nodules with the clearance
    that was drawn for each (some touch the pleura, most do not). What the best one still leaves outside becomes a bulge
    of the lung. ``ends_mm``: z of the lowest and the highest slice.
    """
    centres = np.asarray(centres_mm, float).reshape(-1, 3)
    clearance = 0.6 * np.asarray(radii_mm, float) + rng.uniform(-0.5, 12.0, len(centres))
    width = np.clip(IMAGE_PIXELS * spacing_mm, 270.0, 420.0)
    base = Thorax(
        (0.0, 0.03 * width), (56 + 0.185 * width, 54 + 0.105 * width), ends_mm[1], ends_mm[0],
        (float(rng.uniform(38, 52)), float(rng.uniform(28, 38))), float(rng.uniform()), float(rng.uniform(0.85, 1.1)),
        np.zeros((0, 4)), _waves(rng),
    )  # fmt: skip
    best, least = base, np.inf
    for n in range(CHESTS):
        tried = _varied(base, rng.normal(size=6) * (0.5 + 1.5 * n / CHESTS))
        short = np.maximum(lung_distance(tried, centres) + clearance, 0.0)
        if short.sum() < least:
            best, least = tried, float(short.sum())
        if not short.any():
            break
    outside = lung_distance(best, centres) > -0.3 * np.asarray(radii_mm)
    return replace(best, bulges=np.column_stack([centres, np.asarray(radii_mm) + 6.0])[outside])


def _waves(rng: np.random.Generator) -> NDArray[np.float64]:
    """Displacements of a few mm with wave lengths of 8 to 16 cm."""
    direction = rng.normal(size=(4, 3)) * (1, 1, 0.5)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    vectors = direction * (2 * np.pi / rng.uniform(80, 160, (4, 1)))
    return np.column_stack([vectors, rng.uniform(0, 2 * np.pi, 4), rng.normal(size=(4, 2)) * 2.2])


def _varied(base: Thorax, by: NDArray[np.float64]) -> Thorax:
    """A chest moved, stretched and shifted along the body by ``by`` (6,) standard deviations."""
    scale = 1 + 0.06 * np.clip(by[2:4], -3, 3)
    return replace(
        base,
        centre=(base.centre[0] + 7 * by[0], base.centre[1] + 9 * by[1]),
        half=(base.half[0] * scale[0], base.half[1] * scale[1]),
        top_mm=base.top_mm + 0.03 * base.length_mm * by[4],
        bottom_mm=base.bottom_mm + 0.03 * base.length_mm * by[5],
    )
