"""Radiologists' annotations of LIDC-IDRI: readings, nodules, named cohorts. No torch, no pixels."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
