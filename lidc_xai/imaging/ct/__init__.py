"""A CT in memory and how it is read: DICOM series in any layout, NIfTI, NRRD and MHD, as HU in patient coordinates."""
