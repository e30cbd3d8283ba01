"""Fine-tuning, cross-validation, sweeps, calibration, baselines, and a self-supervised start."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.training.fitting import FitResult, fit
    from lidc_xai.training.options import (
        AugmentOptions,
        FitOptions,
        LossOptions,
        ModelOptions,
        OptimiserOptions,
    )

_WHERE = {
    "AugmentOptions": "options",
    "FitOptions": "options",
    "FitResult": "fitting",
    "LossOptions": "options",
    "ModelOptions": "options",
    "OptimiserOptions": "options",
    "fit": "fitting",
}

__all__ = [
    "AugmentOptions",
    "FitOptions",
    "FitResult",
    "LossOptions",
    "ModelOptions",
    "OptimiserOptions",
    "fit",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
