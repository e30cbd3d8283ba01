"""The parts of ``families.py``: the architectures, the reference by hooks."""
