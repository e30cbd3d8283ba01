"""Reports that a radiologist can read, and files that a viewer can open."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.reporting.export_dicom import export_dicom
    from lidc_xai.reporting.export_nifti import ExportResult, export_nifti
    from lidc_xai.reporting.nodule import nodule_report
    from lidc_xai.reporting.study import ReportResult, study_report

_WHERE = {
    "ExportResult": "export_nifti",
    "ReportResult": "study",
    "export_dicom": "export_dicom",
    "export_nifti": "export_nifti",
    "nodule_report": "nodule",
    "study_report": "study",
}
__all__ = ["ExportResult", "ReportResult", "export_dicom", "export_nifti", "nodule_report", "study_report"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
