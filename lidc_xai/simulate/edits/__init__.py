"""Edits of real crops: one cause is changed and all else stays, so that the cause of a change of output is known."""
