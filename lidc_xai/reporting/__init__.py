"""Reports that a radiologist can read, and files that a viewer can open."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lidc_xai.reporting.nodule import nodule_report
    from lidc_xai.reporting.study import ReportResult, study_report

_WHERE = {"ReportResult": "study", "nodule_report": "nodule", "study_report": "study"}
__all__ = ["ReportResult", "nodule_report", "study_report"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
