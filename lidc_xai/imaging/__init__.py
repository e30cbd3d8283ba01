"""CT in, crops out: series reading and geometry, contours to masks, crops, the store, the PNG edition, simulated CT."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.imaging.check import check_ct
    from lidc_xai.imaging.crop import crop_nodule
    from lidc_xai.imaging.nodule_crop import NoduleCrop
    from lidc_xai.imaging.own_ct import prepare_mask, prepare_points
    from lidc_xai.imaging.planes import VIEWS, Plane, extract_plane
    from lidc_xai.imaging.png_edition import prepare_png
    from lidc_xai.imaging.prepare import PrepareResult, prepare_dicom
    from lidc_xai.imaging.reading import read_ct
    from lidc_xai.imaging.simulate import simulate_ct
    from lidc_xai.imaging.store import CropStore, StoreWriter
    from lidc_xai.imaging.volume import CTVolume

_WHERE = {
    "CTVolume": "volume",
    "CropStore": "store",
    "NoduleCrop": "nodule_crop",
    "Plane": "planes",
    "PrepareResult": "prepare",
    "StoreWriter": "store",
    "VIEWS": "planes",
    "check_ct": "check",
    "crop_nodule": "crop",
    "extract_plane": "planes",
    "prepare_dicom": "prepare",
    "prepare_mask": "own_ct",
    "prepare_png": "png_edition",
    "prepare_points": "own_ct",
    "read_ct": "reading",
    "simulate_ct": "simulate",
}

__all__ = [
    "VIEWS",
    "CTVolume",
    "CropStore",
    "NoduleCrop",
    "Plane",
    "PrepareResult",
    "StoreWriter",
    "check_ct",
    "crop_nodule",
    "extract_plane",
    "prepare_dicom",
    "prepare_mask",
    "prepare_png",
    "prepare_points",
    "read_ct",
    "simulate_ct",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
