"""One run at a time writes into a folder.

The lock is the kernel's (POSIX ``lockf`` on ``FOLDER/.lock``): it ends with the process, however that ends, so that a
killed run never keeps the next one out. The file itself is removed by an orderly end; where it is still there although
nobody holds it, a run was killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from lidc_xai.errors import UsageError

_NAME = ".lock"
_LATER_PROCESS = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
_held: dict[Path, int] = {}


def lock_folder(folder: Path | str) -> bool:
    """Keep other processes out of ``folder`` until :func:`unlock_folders`; True where a run was killed there.

    Once more by the same process is nothing. The second and later processes of one training on several devices take no
    lock: the first has it. Raises UsageError where another process holds it, or where nothing can be written there.
    """
    path = Path(folder).resolve() / _NAME
    if path in _held or any(os.environ.get(name, "0") not in ("", "0") for name in _LATER_PROCESS):
        return False
    while True:
        left = path.exists()
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                whose = f" ({owner})" if owner else ""
                raise UsageError(
                    f"{folder}: another lidc-xai run writes there{whose}; wait for its end or choose another --out"
                ) from None
            return False  # a file system without locks
        if _is_still(path, descriptor):
            break
        os.close(descriptor)  # its owner removed the file between our opening and our locking it
    with suppress(OSError):  # a full disk: the lock holds without its owner's name
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    _held[path] = descriptor
    return left


def unlock_folders() -> None:
    """Give back every lock of this process and remove its file."""
    for path, descriptor in _held.items():
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)
    _held.clear()


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False
