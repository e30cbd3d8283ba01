"""The verbs of the command line, one module a group; what they do lives in the rooms that they call."""
