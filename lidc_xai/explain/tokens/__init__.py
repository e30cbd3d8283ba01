"""Estimators on the token grid of a ViT: attention, its products, CDAM, ReciproCAM and LRP."""
