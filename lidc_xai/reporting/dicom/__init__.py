"""DICOM objects of a nodule: segmentation, parametric maps, structured report."""
