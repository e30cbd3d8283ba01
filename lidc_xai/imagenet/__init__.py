"""Photographs and ImageNet classifiers: the same estimators outside the lung."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
