"""The chest around the nodules: signed distances (mm, negative inside) of body, lungs, bones, organs and airways.

A template in patient axes, sized by the field of view and shifted until every nodule lies in a lung. Heights along the
body are ``u``: 0 at the top slice of the scan, 1 at the bottom one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lidc_xai.imaging.simulate.grid import IMAGE_PIXELS, Floats

RIB_PITCH_MM = 27.0
RIB_DROP_MM = 95.0
"""Distance between ribs in z, and how far a rib comes down on its way from the spine to the front."""


@dataclass(frozen=True, eq=False)
class Thorax:
    """Position and size of one chest.

    ``centre``: (x, y) of the rib cage. ``half``: half width and half depth of its inside. ``top_mm``, ``bottom_mm``: z
    of the scan's ends. ``wall``: thickness of the chest wall (side, front and back). ``bulges``: (n, 4) x, y, z, radius
    of balls that are lung whatever the template says. ``rib_phase``: 0 to 1. ``heart``: size, 1 is average.
    """

    centre: tuple[float, float]
    half: tuple[float, float]
    top_mm: float
    bottom_mm: float
    wall: tuple[float, float]
    rib_phase: float
    heart: float
    bulges: NDArray[np.float64]

    def u(self, z: Floats | float) -> Floats:
        """Height along the body: 0 top slice, 1 bottom slice."""
        return (self.top_mm - np.asarray(z)) / max(self.top_mm - self.bottom_mm, 1.0)

    @property
    def hilum_z(self) -> float:
        """z where the large vessels enter the lungs."""
        return self.top_mm - 0.46 * (self.top_mm - self.bottom_mm)

    def cage(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Inside of the rib cage, narrowing towards the top of the chest."""
        u = np.clip(self.u(z), 0.0, 0.62)
        narrow = np.sqrt(1 - ((0.62 - u) / 0.665) ** 2)
        return _oval(x - self.centre[0], y - self.centre[1], self.half[0] * narrow, self.half[1] * narrow**0.75, 2.3)

    def body(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Inside of the skin."""
        a, b = self.half[0] + self.wall[0], self.half[1] + self.wall[1]
        dx, dy = x - self.centre[0], y - self.centre[1] - 3
        breast = 7 * np.exp(-(((np.abs(dx) - 75) / 38) ** 2)) * (dy < 0)
        return _oval(dx, dy, a, b, 2.35) - breast + 0 * z

    def organs(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Heart and great vessels: what takes up contrast agent."""
        dx, dy, u = x - self.centre[0], y - self.centre[1], self.u(z)
        return np.minimum.reduce(
            [
                _oval(dx - 17 + 3 * u, dy - self.half[1] * 0.52, 12.5 + 0 * u, 12.5 + 0 * u) + _only(u, 0.33, 1.2),
                _oval(dx + 10, dy + 22, 16.5 + 0 * u, 17 + 0 * u) + _only(u, 0.36, 0.6),
                _oval(_turned(dx - 6, dy - 10, 0.62)[0], _turned(dx - 6, dy - 10, 0.62)[1], 33 + 0 * u, 10.5 + 0 * u)
                + _only(u, 0.29, 0.37),
                _oval(dx - 24 - 60 * (u - 0.43), dy + 12 - 60 * (u - 0.43), 13 + 0 * u, 19 + 0 * u)
                + _only(u, 0.40, 0.50),
                _oval(dx + 24, dy + 16, 8 + 0 * u, 9 + 0 * u) + _only(u, 0.2, 0.56),
                *(_oval(dx - sx, dy + 8, 5.5 + 0 * u, 5.5 + 0 * u) + _only(u, -0.2, 0.3) for sx in (-16, 3, 19)),
                self._heart(dx, dy, u),
            ]
        )

    def _heart(self, dx: Floats, dy: Floats, u: Floats) -> Floats:
        size = self.heart * np.sqrt(np.clip(1 - ((u - 0.68) / 0.21) ** 2, 0.0, 1.0)) + 1e-3
        x, y = _turned(dx - 20, dy + self.half[1] * 0.24, 0.45)
        return _oval(x, y, 60 * size, 44 * size)

    def mediastinum(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Everything between the lungs, the spine's bulge and the organs included."""
        dx, dy, u = x - self.centre[0], y - self.centre[1], self.u(z)
        depth = self.half[1]
        column = _oval(
            dx - 3, dy + 0.06 * depth, 25 + 5 * np.exp(-(((u - 0.4) / 0.15) ** 2)), 0.56 * depth + 0 * u, 2.0
        )
        line = _oval(dx - 2, dy + 0.72 * depth, 5 + 4 * u, 0.36 * depth + 0 * u)
        spine = _oval(dx, dy - 0.86 * depth, 27 + 0 * u, 29 + 0 * u)
        joined = _smooth_min(_smooth_min(column, self.organs(x, y, z) - 2.5, 10.0), line, 14.0)
        return _smooth_min(joined, spine, 12.0)

    def diaphragm(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Below the two domes of the diaphragm (negative there)."""
        dx, dy = x - self.centre[0], y - self.centre[1]
        length = self.top_mm - self.bottom_mm
        dome = sum(
            height * np.exp(-(((dx - sx) ** 2 + (dy + 5) ** 2) / (2 * 42.0**2))) for sx, height in ((-58, 52), (58, 40))
        )
        return z - (self.bottom_mm + 0.05 * length + np.minimum(dome, 0.3 * length))

    def lungs(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Both lungs."""
        inside = np.maximum(np.maximum(self.cage(x, y, z), -self.mediastinum(x, y, z)), -self.diaphragm(x, y, z))
        for bx, by, bz, radius in self.bulges:
            ball = np.sqrt((x - bx) ** 2 + (y - by) ** 2 + (z - bz) ** 2) - radius
            inside = _smooth_min(inside, ball, 5.0)
        return inside

    def bones(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Ribs, sternum, spine, shoulder blades."""
        dx, dy, u = x - self.centre[0], y - self.centre[1], self.u(z)
        front = np.arctan2(np.abs(dx), dy) / np.pi  # 0 at the spine, 1 at the sternum
        turn = (z + RIB_DROP_MM * front**1.25) / RIB_PITCH_MM + self.rib_phase
        along_z = (turn - np.round(turn)) * RIB_PITCH_MM * 0.75
        ribs = np.sqrt(((self.cage(x, y, z) - 6.5) * 1.7) ** 2 + along_z**2) - 6.2
        ribs = np.maximum(ribs, (front - 0.83) * 120)  # cartilage joins them to the sternum
        sternum = np.maximum(_oval(dx, dy + self.half[1] + 9, 19 + 0 * u, 6 + 0 * u), (u - 0.72) * 200)
        spine_y = dy - 0.86 * self.half[1]
        vertebra = _oval(dx, spine_y, 19 + 0 * u, 16 + 0 * u, 2.4)
        canal = _oval(dx, spine_y - 24, 9 + 0 * u, 8 + 0 * u)
        arch = np.maximum(_oval(dx, spine_y - 25, 15 + 0 * u, 13 + 0 * u), -canal)
        process = np.minimum(
            _oval(np.abs(dx) - 22, spine_y - 22, 14 + 0 * u, 4.5 + 0 * u),
            _oval(dx, spine_y - 44, 3.5 + 0 * u, 12 + 0 * u),
        )
        blade_x, blade_y = _turned(np.abs(dx) - self.half[0] * 0.93, dy - self.half[1] * 0.80, -0.75)
        blade = _oval(blade_x, blade_y, 34 * np.clip(1.5 - 2 * u, 0.02, 1), 3.6 + 0 * u)
        return np.minimum.reduce([ribs, sternum, vertebra, arch, process, blade])

    def muscles(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Muscles of the chest wall and the back."""
        dx, dy, u = x - self.centre[0], y - self.centre[1], self.u(z)
        between_ribs = self.cage(x, y, z) - 13
        side_x, side_y = _turned(np.abs(dx) - self.half[0] * 0.95, dy - self.half[1] * 0.74, -0.72)
        return np.minimum.reduce(
            [
                between_ribs,
                _oval(np.abs(dx) - 27, dy - self.half[1] - 24, 24 + 0 * u, 15 + 0 * u),
                _oval(side_x, side_y, 42 - 8 * u, 16 - 6 * u),
                _oval(np.abs(dx) - 62, dy + self.half[1] + 6, 44 - 14 * u, 15 - 8 * np.clip(u, 0, 1)),
            ]
        )

    def airways(self, x: Floats, y: Floats, z: Floats) -> Floats:
        """Lumen of the trachea and the main bronchi, as far as they lie in the mediastinum."""
        dx, dy, u = x - self.centre[0], y - self.centre[1], self.u(z)
        away = np.clip(u - 0.385, 0.0, 0.12)
        trachea = _oval(dx + 2, dy - 4 - 12 * np.clip(u, 0, 0.4), 8.5 + 0 * u, 8 + 0 * u) + _only(u, -0.2, 0.385)
        bronchi = (_oval(dx + 2 - s * 220 * away, dy - 10, 6.5 + 0 * u, 6 + 0 * u) for s in (-1.0, 1.0))
        return np.minimum(trachea, np.minimum(*bronchi) + _only(u, 0.37, 0.5))


def fit_thorax(
    centres_mm: Sequence[NDArray[np.float64]], radii_mm: Sequence[float], ends_mm: tuple[float, float],
    spacing_mm: float, rng: np.random.Generator,
) -> Thorax:  # fmt: skip
    """A chest for a field of view of 512 x ``spacing_mm`` in which every ball (centre, radius) lies in a lung.

    Two hundred chests are drawn; the one that covers the nodules best wins, and what is still outside becomes a bulge
    of the lung. ``ends_mm``: z of the lowest and the highest slice.
    """
    centres = np.asarray(centres_mm, float).reshape(-1, 3)
    radii = np.asarray(radii_mm, float)
    width = np.clip(IMAGE_PIXELS * spacing_mm, 280.0, 420.0)
    base = Thorax(
        (0.0, 0.02 * width), (0.305 * width, 0.225 * width), ends_mm[1], ends_mm[0],
        (float(rng.uniform(36, 52)), float(rng.uniform(28, 38))), float(rng.uniform()), float(rng.uniform(0.85, 1.1)),
        np.zeros((0, 4)),
    )  # fmt: skip
    best, least = base, np.inf
    for n in range(200):
        spread = min(1.0, 0.15 + n / 100)  # near the average first, further out when that does not do
        shift = rng.normal(size=4) * spread
        scale = 1 + 0.07 * np.clip(shift[2:], -2, 2)
        tried = replace(
            base,
            centre=(base.centre[0] + 8 * shift[0], base.centre[1] + 12 * shift[1]),
            half=(base.half[0] * scale[0], base.half[1] * scale[1]),
        )
        outside = np.maximum(tried.lungs(*centres.T) + 0.6 * radii + 1.0, 0.0)
        cost = float(outside.sum() + 0.15 * np.abs(shift).sum())
        if cost < least:
            best, least = tried, cost
        if not outside.any():
            break
    missing = best.lungs(*centres.T) + 0.6 * radii + 1.0 > 0
    bulges = np.column_stack([centres, radii + 7.0])[missing]
    return replace(best, bulges=bulges)


def _oval(dx: Floats, dy: Floats, a: Floats | float, b: Floats | float, power: float = 2.0) -> Floats:
    """Distance along the ray from the middle to an oval of half axes a, b (a superellipse for ``power`` > 2)."""
    dx, dy = np.abs(dx) + 1e-3, np.abs(dy)  # never exactly in the middle, where the ray has no direction
    level = np.hypot(dx / a, dy / b) if power == 2 else ((dx / a) ** power + (dy / b) ** power) ** (1 / power)
    return np.hypot(dx, dy) * (1 - 1 / level)


def _turned(dx: Floats, dy: Floats, angle: float) -> tuple[Floats, Floats]:
    return dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)


def _only(u: Floats, first: float, last: float) -> Floats:
    """Nothing between two heights, a growing distance outside them."""
    return 400 * np.maximum(np.maximum(first - u, u - last), 0.0)


def _smooth_min(first: Floats, second: Floats, width: float) -> Floats:
    """Union of two shapes whose meeting edge is rounded over ``width`` mm."""
    h = np.clip(0.5 + 0.5 * (second - first) / width, 0.0, 1.0)
    return second + (first - second) * h - width * h * (1 - h)
