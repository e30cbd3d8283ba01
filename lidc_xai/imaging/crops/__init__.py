"""From a CT and a nodule (or a point) to a crop with masks: contours, matching, resampling."""
