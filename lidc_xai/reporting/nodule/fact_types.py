"""What a nodule's page says, by type. They are dictionaries, because the JSON beside the page is these very values."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Origin = Literal["lidc", "own"]
"""Where a nodule comes from: LIDC-IDRI's readings, or points and masks on somebody's own CT."""
TrustLevel = Literal["none", "low", "limited", "measured"]


class Flag(TypedDict):
    """A quality flag: ``level`` is ``warning``, ``note``, or ``detail`` for what the first page leaves out."""

    level: str
    title: str
    text: str


class Independence(TypedDict):
    """Whether the model had seen this patient: ``status`` independent, trained_on, unknown or none; a sentence."""

    status: str
    text: str


class Readings(TypedDict):
    """What readers said about one output.

    ``mean``, ``sd``: of the votes; of calcification, whose codes are names and not numbers, ``mean`` is the share of
    readers who saw any and ``sd`` is None. ``tally``: votes in words with their number, most frequent first.
    """

    mean: float | None
    sd: float | None
    n: int
    votes: list[float]
    words: str
    tally: str


class Prediction(TypedDict):
    """What the model says about one output.

    ``low``, ``high``: 90 % interval, None where none was measured. ``disagree_by``: standard deviation over models,
    views and slices, None of one model; ``least``, ``greatest``: of the probability over them. Neither is an interval.
    ``set``: the conformal set of malignancy ("low", "high", "low or high"). ``coverage``: measured share of nodules
    whose readers' mean lay inside their interval. ``diameter_only``: the probability of malignancy that the readers'
    diameter alone gives, ``own_diameter_only`` that of the model's own.
    """

    value: float
    low: float | None
    high: float | None
    coverage: float | None
    disagree_by: float | None
    least: float | None
    greatest: float | None
    set: str
    words: str
    percentile: float | None
    logit: float | None
    diameter_only: float | None
    own_diameter_only: float | None


class Output(TypedDict):
    """One output on the page. ``kind``: probability (malignancy), any (P of any calcification), rating or length."""

    name: str
    title: str
    kind: Literal["probability", "any", "rating", "length"]
    unit: str
    relevance_unit: str
    ends: list[str]
    positive: str
    negative: str
    note: str
    prediction: Prediction | None
    readers: Readings


class ReaderMask(TypedDict):
    """One reader's outline: its volume and Dice against the consensus of all and of the others."""

    reader: int
    volume_mm3: float
    dice_consensus: float | None
    dice_others: float | None


class Strength(TypedDict):
    """One map's strength in its output's unit, means over the evaluated planes; ``rank`` is empty without an anchor."""

    positive: float
    negative: float
    largest: float
    rank: str
    word: str


class Repeats(TypedDict):
    """How far ``models`` draw one output's map alike: ``agreement`` of two of them, ``expected`` of their mean with
    that of as many others (rank correlations), share of its strength on patches whose sign is stable. ``note``: why the
    last is None.
    """

    models: int
    agreement: float | None
    expected: float | None
    stable_share: float | None
    note: str


class Zone(TypedDict):
    """A zone's share of a map's positive (``raises``) and negative (``lowers``) relevance, and of the planes."""

    raises: float | None
    lowers: float | None
    area: float


class Places(TypedDict):
    """Where the malignancy map lies. ``around``: the outline, or a ball of the predicted diameter; ``zones``: inside,
    rim (``rim_mm`` to both sides) and outside; ``told_apart``: whether the inside holds a whole patch. The peaks are
    directions of the patient from the nodule's middle ("middle" where there is none).
    """

    around: Literal["outline", "ball"]
    rim_mm: float
    told_apart: bool
    zones: dict[str, Zone]
    raises_peak: list[str]
    lowers_peak: list[str]


class MapFacts(TypedDict):
    """One method's maps. ``limits``: output -> absolute score of full colour; ``anchored``: outputs whose limit is the
    cohort's, with the number of its nodules. ``repeatability``: by output, of a mean over models; empty for one model,
    whose repeatability is unknown.
    """

    method: str
    title: str
    engine: str
    options: dict[str, Any]
    grid: list[int]
    token_mm: list[float]
    outputs: list[str]
    limits: dict[str, float]
    anchored: dict[str, int]
    strength: dict[str, Strength]
    repeatability: dict[str, Repeats]
    panels: list[dict[str, Any]]


class Trust(TypedDict):
    """A verdict: ``level``, its words, the reasons for it and what was not measured."""

    level: TrustLevel
    text: str
    reasons: list[str]
    unmeasured: list[str]


class Said(TypedDict):
    """One of the first page's three answers: what is asked, and the answer."""

    title: str
    text: str


class NoduleFacts(TypedDict):
    """Everything that a nodule's page says."""

    research_use_only: str
    origin: Origin
    identifiers: dict[str, Any]
    simulated: bool
    edited: str
    crop: dict[str, Any]
    label: float | None
    malignancy_median: float | None
    label_words: str
    reads: str
    no_nodule: str
    unseen: str
    models: int | None
    outline: str
    independence: Independence
    outputs: list[Output]
    readers: list[ReaderMask]
    maps: list[MapFacts]
    overlap: list[dict[str, Any]]
    places: Places | None
    associations: dict[str, dict[str, float]]
    curves: dict[str, Any]
    flags: list[Flag]
    missing: list[str]
    summary: list[Said]
    trust: dict[str, Trust]
    similar: list[dict[str, Any]]
    turning: dict[str, Any]
    model: dict[str, Any]
    run: dict[str, Any]
