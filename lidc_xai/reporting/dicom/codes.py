"""Codes of the concepts in our DICOM objects.

Ratings use the codes of the published DICOM re-encoding of LIDC-IDRI (Fedorov et al., Medical Physics 2020, doi
10.1002/mp.14445: NCIt, RadLex and its private scheme 99LIDCQIICR), so that both can be searched alike. What a model
predicts and its maps have no public code: private scheme 99LIDCXAI.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydicom.sr.coding import Code

from lidc_xai.ratings import SCALES

OURS = "99LIDCXAI"
_THEIRS = "99LIDCQIICR"

NODULE = Code("27925004", "SCT", "Nodule")
LUNG = Code("39607008", "SCT", "Lung")
ABNORMAL = Code("49755003", "SCT", "Morphologically Abnormal Structure")
CT_CHEST = Code("24627-2", "LN", "Chest CT")
DIAMETER = Code("81827009", "SCT", "Diameter")
VOLUME = Code("118565006", "SCT", "Volume")
MILLIMETRE = Code("mm", "UCUM", "millimeter")
CUBIC_MILLIMETRE = Code("mm3", "UCUM", "cubic millimeter")
NO_UNIT = Code("1", "UCUM", "no units")
SCORE = Code("{score}", "UCUM", "score")
INTERVAL_90 = Code("PI-90", OURS, "90 % prediction interval")

_CONCEPTS = {
    "malignancy": Code("RID36042", "RADLEX", "Malignancy"),
    "subtlety": Code("C45992", "NCIt", "Subtlety score"),
    "internal_structure": Code("200", _THEIRS, "Internal structure"),
    "calcification": Code("C3672", "NCIt", "Calcification"),
    "sphericity": Code("400", _THEIRS, "Sphericity"),
    "margin": Code("C25563", "NCIt", "Margin"),
    "lobulation": Code("C62175", "NCIt", "Lobular Pattern"),
    "spiculation": Code("C28749", "NCIt", "Spiculation"),
    "texture": Code("C41144", "NCIt", "Texture"),
    "diameter": DIAMETER,
}

_NAMED_VALUES = {
    ("internal_structure", 1): Code("C12471", "NCIt", "Soft tissue"),
    ("internal_structure", 2): Code("C25278", "NCIt", "Fluid"),
    ("internal_structure", 3): Code("C12472", "NCIt", "Adipose tissue"),
    ("internal_structure", 4): Code("C73434", "NCIt", "Air"),
    ("calcification", 1): Code("RID35453", "RADLEX", "Popcorn calcification sign"),
    ("calcification", 2): Code("302", _THEIRS, "Laminated appearance"),
    ("calcification", 3): Code("RID5741", "RADLEX", "Solid appearance"),
    ("calcification", 4): Code("304", _THEIRS, "Non-central appearance"),
    ("calcification", 5): Code("RID5827", "RADLEX", "Central calcification"),
    ("calcification", 6): Code("RID28473", "RADLEX", "Absent"),
    ("sphericity", 1): Code("RID5811", "RADLEX", "linear"),
    ("sphericity", 3): Code("RID5800", "RADLEX", "ovoid"),
    ("sphericity", 5): Code("RID5799", "RADLEX", "round"),
    ("margin", 1): Code("RID5709", "RADLEX", "Indistinct margin"),
    ("margin", 5): Code("RID5707", "RADLEX", "Circumscribed margin"),
    ("texture", 1): Code("RID50153", "RADLEX", "non-solid pulmonary nodule"),
    ("texture", 3): Code("RID50152", "RADLEX", "part-solid pulmonary nodule"),
    ("texture", 5): Code("RID50151", "RADLEX", "solid pulmonary nodule"),
}
_OWN_STEPS = {"subtlety": 100, "malignancy": 900}
"""Ratings whose five steps all have codes of their own, from this number on."""
_OWN_ENDS = {"lobulation": 600, "spiculation": 700}
"""Ratings whose lowest and highest step have."""


COMPOSITION = Code("RDE1301", "RADELEMENT", "Composition")
MORPHOLOGY = Code("RDE1305", "RADELEMENT", "Morphology")
"""Elements of RadElement's set RDES195, Pulmonary Nodule (American College of Radiology, RSNA; radelement.org)."""
_COMPOSITIONS = ((2.0, "RDE1301.1", "ground glass"), (4.0, "RDE1301.2", "part-solid"), (9.0, "RDE1301.0", "solid"))
_MARKED = 3.0
"""The middle of LIDC's scales: from here on a sign is taken as there."""


def radelement_findings(values: Mapping[str, float | None]) -> list[tuple[Code, Code]]:
    """Predicted ratings (1 to 5) as RadElement's (element, value): composition from texture, one word of morphology.

    Morphology is a single choice: spiculated before lobulated before ill-defined, each from the middle of its scale on.
    """
    findings = []
    texture = values.get("texture")
    if texture is not None:
        code, word = next((code, word) for below, code, word in _COMPOSITIONS if texture < below)
        findings.append((COMPOSITION, Code(code, "RADELEMENT", word)))
    signs = [values.get(name) for name in ("spiculation", "lobulation", "margin")]
    if all(value is not None for value in signs):
        spiculation, lobulation, margin = (float(value or 0.0) for value in signs)
        word = (
            "spiculated" if spiculation >= _MARKED else "lobulated" if lobulation >= _MARKED
            else "ill-defined" if margin < _MARKED else "smooth"
        )  # fmt: skip
        place = ("smooth", "lobulated", "ill-defined", "spiculated").index(word)
        findings.append((MORPHOLOGY, Code(f"RDE1305.{place}", "RADELEMENT", word)))
    return findings


def concept(name: str) -> Code:
    """What is rated: a rating of ``READER_RATINGS`` or ``diameter``."""
    return _CONCEPTS[name]


def rating_value(name: str, vote: int) -> Code:
    """One reader's rating as a coded value."""
    if (name, vote) in _NAMED_VALUES:
        return _NAMED_VALUES[name, vote]
    if name in _OWN_STEPS or (name in _OWN_ENDS and vote in (1, 5)):
        base = _OWN_STEPS.get(name) or _OWN_ENDS[name]
        return Code(str(base + vote), _THEIRS, f"{vote} out of 5 ({SCALES[name].codes[vote]})")
    return Code(f"{vote:03d}", _THEIRS, f"{vote} out of 5")


def predicted(name: str) -> Code:
    """What a model says about an output, as the name of a measurement."""
    if name == "malignancy":
        return Code("PRED-malignancy", OURS, "Probability of readers' median malignancy above 3")
    if name == "calcification":  # its codes are names: a mean of them is no quantity
        return Code("PRED-p-calcified", OURS, "Probability of any calcification")
    return Code(f"PRED-{name}", OURS, f"Predicted {name} rating" if name != "diameter" else "Predicted diameter")


def relevance(name: str, layer: str = "") -> Code:
    """What a map of an output holds, or another layer of it: its standard error, where its sign is stable."""
    if layer == "_standard_error":
        return Code(f"REL-SE-{name}"[:16], OURS, f"Standard error of the relevance for {name}")
    if layer == "_stable":
        return Code(f"REL-ST-{name}"[:16], OURS, f"Sign of the relevance for {name} is stable")
    return Code(f"REL-{name}", OURS, f"Relevance for predicted {name}")


def relevance_unit(name: str) -> Code:
    """Unit of a map's values: logits for malignancy, standard deviations of the training targets otherwise."""
    return Code("{logit}", "UCUM", "logit") if name == "malignancy" else Code("{SD}", "UCUM", "standard deviations")
