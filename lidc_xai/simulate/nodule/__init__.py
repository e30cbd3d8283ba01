"""A nodule as its ratings ask for it: outline, density, edge, foci and spicules."""
