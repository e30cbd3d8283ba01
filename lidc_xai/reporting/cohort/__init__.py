"""The page of a cohort: flow, figures with intervals, galleries, checklist."""
