"""Simulated chest CT around real annotations: contours, positions and ratings are real.

LIDC's pixels cannot be shipped, its annotations can; anatomy, noise and blur are made up. What carries each rating is
known here voxel by voxel, so that explanations have a right answer. Everything that comes out is labelled SIMULATED.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.imaging.simulate.crops import simulate_crop
    from lidc_xai.imaging.simulate.dicom import write_dicom
    from lidc_xai.imaging.simulate.expression import independent_ratings, with_ratings
    from lidc_xai.imaging.simulate.series import SimulatedCT, simulate_ct
    from lidc_xai.imaging.simulate.to_store import simulate_store

_WHERE = {
    "SimulatedCT": "series",
    "independent_ratings": "expression",
    "simulate_crop": "crops",
    "simulate_ct": "series",
    "simulate_store": "to_store",
    "with_ratings": "expression",
    "write_dicom": "dicom",
}

__all__ = [
    "SimulatedCT",
    "independent_ratings",
    "simulate_crop",
    "simulate_ct",
    "simulate_store",
    "with_ratings",
    "write_dicom",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
