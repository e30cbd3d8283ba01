"""The path under which scripts of the first version import the maps of nodules; they live in ``lidc_xai.nodules``."""

from lidc_xai.nodules.maps import NoduleMaps, explain_nodules, explain_store, load_maps, maps_of_store, nodule_images

__all__ = ["NoduleMaps", "explain_nodules", "explain_store", "load_maps", "maps_of_store", "nodule_images"]
