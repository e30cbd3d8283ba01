"""Seeded damage to inputs, and a watch over what the package does with them. Kinds of input register in ``kinds``."""
