"""Simulated CT: the nodule's shape from its contours, and vessels as shares of voxels."""

import numpy as np
import pytest

from lidc_xai.annotations import Nodule
from lidc_xai.simulate.anatomy.tubes import Tubes, grow, tube_share
from lidc_xai.simulate.grid import Grid, stream
from lidc_xai.simulate.nodule.outline import nodule_outline, slice_step


def grid(size_mm: float = 24.0, spacing: float = 0.7, thickness: float = 2.0) -> Grid:
    n = round(size_mm / spacing)
    z = np.arange(-size_mm / 2, size_mm / 2, thickness)
    return Grid(spacing, thickness, z, 0, 256 - n // 2, 256 - n // 2, n, n)


def tube(start: list[float], end: list[float], radius: float) -> Tubes:
    return Tubes(np.array([start]), np.array([end]), np.array([radius]), np.array([radius]))


class TestOutline:
    def test_has_the_volume_that_the_readers_drew(self, nodules: list[Nodule]) -> None:
        from lidc_xai.simulate.nodule.outline import _reader_mask

        for nodule in [n for n in nodules if n.n_readers >= 3][::120]:
            outline = nodule_outline(nodule)
            z = outline.z_mm
            shape = outline.planes.shape[1:]
            low = np.array([outline.i0, outline.j0])
            drawn = [_reader_mask(reading, z, low, shape).sum() for reading in nodule.readers]
            assert (outline.planes < 0).sum() == pytest.approx(np.median(drawn), rel=0.05, abs=4)

    def test_lies_where_the_readers_drew(self, nodules: list[Nodule]) -> None:
        for nodule in [n for n in nodules if n.n_readers == 4][::90]:
            outline = nodule_outline(nodule)
            i, j, _ = nodule.centroid
            mm = nodule.pixel_spacing_mm
            expected = np.array([(i - 255.5) * mm, (j - 255.5) * mm, nodule.centroid_z_mm])
            assert np.abs(outline.centre_mm - expected).max() < 0.35 * np.linalg.norm(outline.high - outline.low) + mm

    def test_closes_half_a_slice_beyond_the_last_outline(self, by_id: dict[str, Nodule]) -> None:
        nodule = by_id["LIDC-IDRI-0001-s1-n0"]
        outline = nodule_outline(nodule)
        step = slice_step(nodule)
        window = Grid(
            outline.spacing_mm, step, outline.z_mm, 0, outline.i0, outline.j0, *outline.planes.shape[1:]
        )  # fmt: skip
        top = max(c.z_mm for r in nodule.readers for c in r.contours)
        assert (outline.distance(window, np.array([top + 1.01 * step])) > 0).all()
        assert (outline.distance(window, np.array([nodule.centroid_z_mm])) < 0).any()

    def test_every_nodule_has_one(self, nodules: list[Nodule]) -> None:
        smallest = sorted(nodules, key=lambda n: sum(len(c.ij) for r in n.readers for c in r.contours))[:40]
        for nodule in smallest:
            outline = nodule_outline(nodule)
            assert np.isfinite(outline.planes).all()
            assert outline.radius_mm > 0


class TestTubes:
    @pytest.mark.parametrize("radius", [0.25, 0.6, 1.0, 2.0, 3.5])
    @pytest.mark.parametrize("end", [[5.0, 0.0, 0.0], [0.3, 0.2, 5.0], [4.0, -3.0, 2.0]])
    def test_keep_their_volume(self, radius: float, end: list[float]) -> None:
        window = grid()
        start = np.array([-4.0, 0.5, -1.0])
        share = tube_share(window, tube(start.tolist(), (start + end).tolist(), radius))
        volume = share.sum() * window.spacing_mm**2 * window.thickness_mm
        length = float(np.linalg.norm(end))
        cylinder = np.pi * radius**2 * length
        capsule = cylinder + 4 / 3 * np.pi * radius**3
        assert 0.8 * cylinder < volume < 1.1 * capsule

    def test_lie_where_they_should(self) -> None:
        window = grid(thickness=1.0)
        share = tube_share(window, tube([-3.0, 2.0, 1.0], [3.0, 2.0, 1.0], 2.0))
        k, j, i = (np.average(np.arange(n), weights=share.sum(axis=axes))
                   for n, axes in zip(share.shape, ((1, 2), (0, 2), (0, 1)), strict=True))  # fmt: skip
        assert window.x0_mm + i * 0.7 == pytest.approx(0, abs=0.05)
        assert window.y0_mm + j * 0.7 == pytest.approx(2, abs=0.05)
        assert np.interp(k, np.arange(len(window.z_mm)), window.z_mm) == pytest.approx(1, abs=0.1)

    def test_outside_the_window_leave_nothing(self) -> None:
        assert not tube_share(grid(), tube([50.0, 0, 0], [60.0, 0, 0], 2.0)).any()


class TestTree:
    def test_reaches_every_end_and_tapers(self) -> None:
        rng = stream(1, "tree")
        ends = rng.uniform(-40, 40, (200, 3))
        root = np.array([60.0, 0.0, 0.0])
        tubes = grow(ends, np.ones(200), root, rng)
        away = np.linalg.norm(tubes.end[:, None] - ends[None], axis=2).min(axis=0)
        assert away.max() < 1e-9
        assert np.linalg.norm(tubes.start - root, axis=1).min() < 1e-9
        assert (tubes.r1 <= tubes.r0 + 1e-9).all()
        assert tubes.r0.max() > 5 * tubes.r1.min()

    def test_is_connected(self) -> None:
        rng = stream(2, "tree")
        tubes = grow(rng.uniform(-20, 20, (50, 3)), np.ones(50), np.zeros(3), rng)
        known = np.concatenate([tubes.end, np.zeros((1, 3))])
        assert np.linalg.norm(tubes.start[:, None] - known[None], axis=2).min(axis=1).max() < 1e-9

    def test_few_heavy_ends_give_the_trunk_of_many_light_ones(self) -> None:
        rng = stream(3, "tree")
        ends = rng.uniform(-20, 20, (100, 3))
        light = grow(ends, np.ones(100), np.zeros(3), stream(4, "x"))
        heavy = grow(ends[::10], np.full(10, 10.0), np.zeros(3), stream(4, "x"))
        assert heavy.r0.max() == pytest.approx(light.r0.max())
