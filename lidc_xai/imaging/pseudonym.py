"""Own CT without its patient's ID: a keyed hash stands for it wherever a store, and all that is made from it, names it.

HMAC-SHA256 of the PatientID with a secret of 32 bytes. The secret lies in the user's configuration folder (or where
``LIDC_XAI_PSEUDONYM_KEY`` says), never in a store: with it the same patient has the same pseudonym every time, without
it nobody can try all hospital numbers. Ids of LIDC-IDRI are pseudonyms already and are kept: by them a model knows
whom it learned from.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lidc_xai.errors import UsageError
from lidc_xai.files import path_safe
from lidc_xai.imaging.ct.volume import CTVolume

KEY_VARIABLE = "LIDC_XAI_PSEUDONYM_KEY"
_PUBLIC = re.compile(r"LIDC-IDRI-\d{4}")
_DIGITS = 10
_KEY_BYTES = 32


@dataclass(frozen=True)
class Identity:
    """What a CT is called in a store. ``prefix``: how ids of its nodules begin that have no name of their own."""

    patient_id: str
    prefix: str
    hidden: tuple[str, ...] = ()

    def nodule_id(self, name: str) -> str:
        """``name`` as an id, without what is to be hidden."""
        return path_safe(self.scrub(name), self.prefix)

    def scrub(self, text: str) -> str:
        """``text`` with the pseudonym for every word that is to be hidden, in any case, and no folders before files."""
        if self.hidden:
            text = _FOLDERS.sub("", text)
        for word in self.hidden:
            text = re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", self.prefix, text, flags=re.IGNORECASE)
        return text


def identity_of(ct: CTVolume, ct_path: Path | str, keep_ids: bool = False) -> Identity:
    """Pseudonym and prefix of a CT; with ``keep_ids`` its own PatientID, and the name of its file as prefix."""
    name = _stem(ct_path)
    if keep_ids or _PUBLIC.fullmatch(ct.patient_id):
        return Identity(ct.patient_id, path_safe(name, "ct"))
    made = pseudonym(ct.patient_id or str(Path(ct_path).resolve()))
    place = Path(ct.source).name if ct.source else ""
    paths = {name, Path(ct_path).resolve().name, place}
    words = {word for word in paths if len(word) > 3 and word.lower() not in _COMMON}
    words |= {word for word in (ct.patient_id.strip(), *_parts(ct.patient_id)) if len(word) > 1}
    return Identity(made if ct.patient_id else "", made, tuple(sorted(words, key=lambda word: (-len(word), word))))


_COMMON = frozenset(
    {"dicom", "scan", "series", "chest", "thorax", "image", "images", "data", "slice", "slices", "lung"}
)
"""Names of files and folders that say nothing of a patient and may stand in words about the CT."""
_FOLDERS = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^\s/\\:;,]+)*[/\\](?=[^\s/\\:;,])")


def pseudonym(identifier: str) -> str:
    """``own-`` and ten hexadecimal digits for ``identifier``, the same on every call with the same secret."""
    digest = hmac.new(_secret(), identifier.strip().encode(), hashlib.sha256)
    return f"own-{digest.hexdigest()[:_DIGITS]}"


def shown_patient(ct: CTVolume) -> str:
    """The patient of ``ct`` as it may be shown."""
    return ct.patient_id if _PUBLIC.fullmatch(ct.patient_id) or not ct.patient_id else pseudonym(ct.patient_id)


def _secret() -> bytes:
    path = _key_file()
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with suppress(FileExistsError):  # another process was faster
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(secrets.token_bytes(_KEY_BYTES))
        secret = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{path}: the secret of the pseudonyms cannot be kept there ({error.strerror}); name another file by "
            f"{KEY_VARIABLE}, or keep the patients' IDs with --keep-ids"
        ) from error
    if len(secret) < _KEY_BYTES:
        raise UsageError(f"{path}: is no secret of {_KEY_BYTES} bytes; delete it to have a new one made")
    return secret


def _key_file() -> Path:
    named = os.environ.get(KEY_VARIABLE)
    if named:
        return Path(named)
    home = os.environ.get("XDG_CONFIG_HOME")
    return (Path(home) if home else Path.home() / ".config") / "lidc_xai" / "pseudonym.key"


def _parts(identifier: str) -> list[str]:
    """The ID as it looks in names of files: what separates its parts may differ there."""
    plain = re.sub(r"[^\w]+", "-", identifier).strip("-")
    return [plain, plain.replace("-", "_"), plain.replace("-", ""), path_safe(identifier)]


def _stem(ct_path: Path | str) -> str:
    name = Path(ct_path).resolve().name
    for suffix in (".gz", ".zip", ".nii", ".nrrd", ".nhdr", ".mhd", ".mha", ".dcm"):
        name = name.removesuffix(suffix)
    return name
