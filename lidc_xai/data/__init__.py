"""From stores to training data: patient splits, normalisation from the training part, MONAI datasets, downloads."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
