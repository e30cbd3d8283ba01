"""Simulated chest CT around real annotations: contours, positions and ratings are real.

LIDC's pixels cannot be shipped, its annotations can; anatomy, noise and blur are made up. What carries each rating is
known here voxel by voxel, so that explanations have a right answer. Everything that comes out is labelled SIMULATED.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
