"""The verbs of the command line, one module a group; what they do lives in the rooms that they call."""

GROUPS = (
    "demo", "splits", "prepare", "training", "explain", "explain_image", "edit", "benchmark", "report", "export",
    "info",
)  # fmt: skip
"""Modules of verbs, in the order of the help page."""
