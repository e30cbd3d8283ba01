"""Every exception that a user can cause. Its text is one line: what was got, where, and the remedy."""


class LidcXaiError(Exception):
    """Base of all errors that a user can cause. ``exit_code`` is what the command line returns for it."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class UsageError(LidcXaiError):
    """Wrong usage: an unknown name, a missing path, a configuration field that does not fit."""

    exit_code = 2


class DataError(LidcXaiError):
    """A file or an array that cannot be used: damaged, of another kind, or at odds with the annotations."""


class ModelError(LidcXaiError):
    """A model or a weights file that cannot be used, or cannot do what was asked of it."""


class StorageError(LidcXaiError):
    """A place that cannot be written: a full disk, no permission. It ends a run and is never the fault of one item."""


class DependencyError(LidcXaiError):
    """An optional library, or a library of the system, is missing; the text names the package that brings it."""


def reason_of(error: Exception) -> str:
    """Why one item of many is left out, in one line: our own words, or the kind and text of an unexpected exception.

    What concerns more than the item (a full disk, wrong usage, a missing library) is raised again.

    >>> reason_of(ValueError("no number")), reason_of(DataError("P1: is empty"))
    ('unexpected ValueError: no number', 'P1: is empty')
    """
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, LidcXaiError | OSError):
        raise error
    return " ".join(f"unexpected {type(error).__name__}: {error}".split())
