"""Reports that a radiologist can read, and files that a viewer can open."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.reporting.benchmark import benchmark_report, image_sheet
    from lidc_xai.reporting.cohort import cohort_report
    from lidc_xai.reporting.dicom_files import export_dicom
    from lidc_xai.reporting.nodule import nodule_report
    from lidc_xai.reporting.reader_study import export_reader_study, score_reader_study
    from lidc_xai.reporting.study import ReportResult, study_report
    from lidc_xai.reporting.volume_files import ExportResult, export_nifti

_WHERE = {
    "ExportResult": "volume_files",
    "ReportResult": "study",
    "benchmark_report": "benchmark",
    "cohort_report": "cohort",
    "export_dicom": "dicom_files",
    "export_nifti": "volume_files",
    "export_reader_study": "reader_study",
    "image_sheet": "benchmark",
    "nodule_report": "nodule",
    "score_reader_study": "reader_study",
    "study_report": "study",
}
__all__ = [
    "ExportResult",
    "ReportResult",
    "benchmark_report",
    "cohort_report",
    "export_dicom",
    "export_nifti",
    "export_reader_study",
    "image_sheet",
    "nodule_report",
    "score_reader_study",
    "study_report",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
