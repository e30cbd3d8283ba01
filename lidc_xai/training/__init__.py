"""Fine-tuning, cross-validation, sweeps, calibration, baselines, and a self-supervised start."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
