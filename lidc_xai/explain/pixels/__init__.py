"""Estimators by gradients towards pixels or at one layer, for any network."""
