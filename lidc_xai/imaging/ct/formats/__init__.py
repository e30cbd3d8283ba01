"""Volume files: NIfTI, NRRD and MetaImage, their headers parsed and checked here before one voxel is read."""
