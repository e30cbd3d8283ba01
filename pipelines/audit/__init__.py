"""What the audit by edits measures, and its tables."""
