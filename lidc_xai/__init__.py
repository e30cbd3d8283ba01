"""lidc_xai: why does this Vision Transformer call this lung nodule suspicious, and may I believe the picture?

Research use only; not a medical device.
"""

__version__ = "0.2.0"
