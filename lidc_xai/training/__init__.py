"""Fine-tuning, cross-validation, sweeps, calibration, baselines, and a self-supervised start."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.training.assessment import evaluate_predictions
    from lidc_xai.training.bootstrap import metric_difference, metric_interval
    from lidc_xai.training.cross_validation import CrossValidation, cross_validate
    from lidc_xai.training.fitting import FitResult, fit
    from lidc_xai.training.options import (
        AugmentOptions,
        FitOptions,
        LossOptions,
        ModelOptions,
        OptimiserOptions,
        PretrainOptions,
    )
    from lidc_xai.training.self_supervised import pretrain
    from lidc_xai.training.sweeping import Range, SweepOptions, SweepResult, sweep

# Modules are not called like the functions they hold: an imported submodule would hide the function of its name.
_WHERE = {
    "AugmentOptions": "options",
    "CrossValidation": "cross_validation",
    "FitOptions": "options",
    "FitResult": "fitting",
    "LossOptions": "options",
    "ModelOptions": "options",
    "OptimiserOptions": "options",
    "PretrainOptions": "options",
    "Range": "sweeping",
    "SweepOptions": "sweeping",
    "SweepResult": "sweeping",
    "cross_validate": "cross_validation",
    "evaluate_predictions": "assessment",
    "fit": "fitting",
    "metric_difference": "bootstrap",
    "metric_interval": "bootstrap",
    "pretrain": "self_supervised",
    "sweep": "sweeping",
}

__all__ = [
    "AugmentOptions",
    "CrossValidation",
    "FitOptions",
    "FitResult",
    "LossOptions",
    "ModelOptions",
    "OptimiserOptions",
    "PretrainOptions",
    "Range",
    "SweepOptions",
    "SweepResult",
    "cross_validate",
    "evaluate_predictions",
    "fit",
    "metric_difference",
    "metric_interval",
    "pretrain",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
