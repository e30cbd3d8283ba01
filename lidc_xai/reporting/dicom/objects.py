"""Segmentation, parametric maps and structured report of one nodule, by highdicom, all tied to the source series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from lidc_xai import __version__
from lidc_xai.ratings import OUTPUTS, READER_RATINGS, SCALES
from lidc_xai.reporting.dicom import codes as code
from lidc_xai.reporting.pictures import CONSENSUS_COLOUR, READER_COLOURS
from lidc_xai.reporting.values import number

_MANUFACTURER = "lidc-xai"


@dataclass(frozen=True)
class Source:
    """The slices an object refers to, in ascending order along their normal, and whose nodule it is.

    ``mark``: SIMULATED or EDITED, where the CT is not as it was scanned.
    """

    slices: Sequence[Dataset]
    nodule_id: str
    mark: str

    def uid(self, *names: str) -> str:
        """The same UID in every run for the same nodule, series and object."""
        series = str(self.slices[0].SeriesInstanceUID)
        return str(generate_uid(entropy_srcs=["lidc_xai", __version__, series, self.nodule_id, *names]))

    def description(self, words: str) -> str:
        """A series description of at most 64 characters that says what it must not be used for."""
        return f"{self.mark + ' ' if self.mark else ''}RESEARCH USE ONLY: {words}"[:64]

    def common(self, name: str, series_number: int, words: str) -> dict[str, Any]:
        """Arguments that every object needs."""
        return {
            "series_instance_uid": self.uid(name, "series"),
            "series_number": series_number,
            "sop_instance_uid": self.uid(name, "instance"),
            "instance_number": 1,
            "manufacturer": _MANUFACTURER,
            "series_description": self.description(words),
        }

    def repeatable(self, made: Dataset, name: str) -> None:
        """The dimensions' UID, which highdicom draws at random, becomes the same in every run."""
        uid = self.uid(name, "dimensions")
        for item in [*made.DimensionOrganizationSequence, *made.DimensionIndexSequence]:
            item.DimensionOrganizationUID = uid


def segmentation(
    source: Source, masks: NDArray[np.bool_], consensus: NDArray[np.bool_], exact: bool
) -> hd.seg.Segmentation:
    """Readers' outlines and their consensus as segments of one binary segmentation on the source's own pixels.

    ``masks``: (readers, slices, rows, columns), none of them for an outline that a user gave; ``consensus``: (slices,
    rows, columns), at least half of the readers, or that outline.
    """
    algorithm = hd.AlgorithmIdentificationSequence(
        name="consensus of at least half of the readers", family=code.Code("CONSENSUS", code.OURS, "Consensus"),
        version=__version__,
    )  # fmt: skip
    segments = [_segment(source, number, len(masks), algorithm) for number in range(1, len(masks) + 2)]
    stack = np.stack([*masks, consensus], axis=-1).astype(np.uint8)
    how = "from the readers' outlines" if exact else "carried over from a resampled crop"
    made = hd.seg.Segmentation(
        source_images=source.slices,
        pixel_array=stack,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        manufacturer_model_name="lidc-xai",
        software_versions=__version__,
        device_serial_number="0",
        content_description=(f"LIDC readers' masks {how}" if len(masks) else "the outline that was given")[:64],
        content_label="LIDC_READERS" if len(masks) else "OUTLINE",
        content_creator_name="LIDC^readers" if len(masks) else "lidc-xai",
        **source.common("seg", 9001, "LIDC readers and consensus" if len(masks) else "outline"),
    )
    source.repeatable(made, "seg")
    return made


def _segment(
    source: Source, number: int, readers: int, algorithm: hd.AlgorithmIdentificationSequence
) -> hd.seg.SegmentDescription:
    manual = number <= readers or not readers
    label = f"{source.nodule_id} {'outline' if not readers else f'reader {number}' if manual else 'consensus'}"
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label[:64],
        segmented_property_category=code.ABNORMAL,
        segmented_property_type=code.NODULE,
        algorithm_type="MANUAL" if manual else "AUTOMATIC",
        algorithm_identification=None if manual else algorithm,
        tracking_uid=source.uid("track", str(number)),
        tracking_id=label[:64],
        anatomic_regions=[code.LUNG],
        display_color=hd.color.CIELabColor.from_rgb(
            *bytes.fromhex(
                (READER_COLOURS[(number - 1) % len(READER_COLOURS)] if number <= readers else CONSENSUS_COLOUR)[1:]
            )
        ),
    )


_LAYERS = {
    "": ("relevance", 9100),
    "_standard_error": ("standard error over models", 9200),
    "_stable": ("1: sign stable over models", 9300),
}
"""Layer of a map -> what it holds, and the first of its series' numbers."""


def parametric_map(
    source: Source,
    method: str,
    output: str,
    values: NDArray[np.float32],
    first_pixel: tuple[int, int],
    layer: str = "",
) -> hd.pm.ParametricMap:
    """One signed map on a rectangle of the source's own pixels, or another ``layer`` of it (``NoduleMaps.layers``).

    ``values``: (slices, rows, columns) float32, one per source slice, NaN where nothing was evaluated (declared as the
    padding value); ``first_pixel``: (row, column) of the rectangle's first pixel in the source.
    """
    first = source.slices[0]
    orientation = np.array(first.ImageOrientationPatient, dtype=np.float64)
    rows_mm, columns_mm = (float(value) for value in first.PixelSpacing)
    shift = orientation[:3] * columns_mm * first_pixel[1] + orientation[3:] * rows_mm * first_pixel[0]
    positions = [
        hd.PlanePositionSequence(
            hd.CoordinateSystemNames.PATIENT,
            [float(f"{value:.6f}") for value in np.array(one.ImagePositionPatient, dtype=np.float64) + shift],
        )
        for one in source.slices
    ]
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if finite.size else 1.0
    held, number = _LAYERS[layer]
    unit = code.relevance_unit(output) if layer != "_stable" else code.NO_UNIT
    mapping = hd.pm.RealWorldValueMapping(
        lut_label=output.upper()[:16],
        lut_explanation=f"{SCALES[output].towards(1)} (positive)"[:64] if not layer else held,
        unit=unit,
        value_range=(-largest, largest),
        slope=1.0,
        intercept=0.0,
        quantity_definition=code.relevance(output, layer),
    )
    name = f"map {method} {output}{layer}"
    made = hd.pm.ParametricMap(
        source_images=source.slices,
        pixel_array=values.astype(np.float32),
        manufacturer_model_name="lidc-xai",
        software_versions=__version__,
        device_serial_number="0",
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[
            hd.VOILUTTransformation(0.0, 2 * largest, voi_lut_function=hd.VOILUTFunctionValues.LINEAR_EXACT)
        ],
        content_description=f"{method} {held} for {output}, {unit.meaning}"[:64],
        content_label="RELEVANCE",
        pixel_measures=hd.PixelMeasuresSequence(
            pixel_spacing=(rows_mm, columns_mm), slice_thickness=float(first.get("SliceThickness") or 1.0)
        ),
        plane_orientation=hd.PlaneOrientationSequence(hd.CoordinateSystemNames.PATIENT, orientation.tolist()),
        plane_positions=positions,
        **source.common(name, number + OUTPUTS.index(output), f"{method} {output}{layer.replace('_', ' ')}"),
    )
    source.repeatable(made, name)
    made.FloatPixelPaddingValue = made.FloatPixelPaddingRangeLimit = float("nan")
    made.Laterality = ""  # lungs are paired; which one it is, nobody recorded
    return made


@dataclass(frozen=True)
class Session:
    """What one reader or the model says about the nodule: a group of the report."""

    name: str
    evaluations: Sequence[hd.sr.QualitativeEvaluation]
    measurements: Sequence[hd.sr.Measurement]
    segment: int | None = None


@dataclass(frozen=True)
class Sphere:
    """Where a nodule without an outline lies: its centre (LPS mm) and, where it is known, its radius (mm)."""

    centre_mm: tuple[float, float, float]
    radius_mm: float | None = None


def reader_sessions(votes: Sequence[Mapping[str, Any]]) -> list[Session]:
    """One session per reader: ratings and diameter. ``votes``: one row of ``votes.csv`` per reader."""
    sessions = []
    for place, vote in enumerate(votes, start=1):
        rated = {name: value for name in READER_RATINGS if (value := number(vote, name)) is not None}
        items = [
            hd.sr.QualitativeEvaluation(code.concept(name), code.rating_value(name, int(value)))
            for name, value in rated.items()
        ]
        mm = number(vote, "diameter_mm")
        diameter = [] if mm is None else [hd.sr.Measurement(code.DIAMETER, round(mm, 3), code.MILLIMETRE)]
        sessions.append(Session(f"Reader {place}", items, diameter, place))
    return sessions


def model_session(prediction: Mapping[str, Any], model_name: str, segment: int | None) -> Session:
    """What the model says: predictions with their 90 % intervals, and findings in RadElement's words."""
    values = {name: number(prediction, name) for name in OUTPUTS}
    findings = [hd.sr.QualitativeEvaluation(name, value) for name, value in code.radelement_findings(values)]
    return Session("Model", findings, _predictions(prediction, model_name), segment)


def structured_report(
    source: Source,
    sessions: Sequence[Session],
    seg: hd.seg.Segmentation | None = None,
    volumes_mm3: Sequence[float] = (),
    place: Sphere | None = None,
) -> hd.sr.Comprehensive3DSR:
    """TID 1500: one group per session, at a segment of ``seg``, or at a sphere or point where there is no outline.

    ``volumes_mm3``: of every segment of ``seg``. A series without a frame of reference has no place for a sphere: its
    group names the slice.
    """
    groups = [_group(source, session, seg, volumes_mm3, place) for session in sessions]
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=_device(source)),
        procedure_reported=code.CT_CHEST,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        referenced_images=source.slices,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[*source.slices, *([] if seg is None else [seg])],
        content=report,
        is_complete=True,
        is_final=False,
        is_verified=False,
        **source.common("sr", 9002, "ratings, predictions"),
    )


def key_image(source: Source, place: int) -> hd.ko.KeyObjectSelectionDocument:
    """The slice to open first: ``place`` among the source's slices."""
    shown = source.slices[place]
    selection = hd.ko.KeyObjectSelection(
        document_title=codes.DCM.OfInterest,
        referenced_objects=[shown],
        observer_device_context=_device(source),
        description=f"Nodule {source.nodule_id}. Research use only."[:64],
    )
    return hd.ko.KeyObjectSelectionDocument(
        evidence=[shown], content=selection, **source.common("key", 9003, "key image")
    )


def _device(source: Source) -> hd.sr.ObserverContext:
    return hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=source.uid("device"), name="lidc-xai, research use only", manufacturer_name=_MANUFACTURER
        ),
    )


def _group(
    source: Source,
    session: Session,
    seg: hd.seg.Segmentation | None,
    volumes_mm3: Sequence[float],
    place: Sphere | None,
) -> Any:
    """A group of TID 1500; which template it is follows from what is known of the place."""
    label = f"{source.nodule_id} {session.name}"[:64]
    common: dict[str, Any] = {
        "tracking_identifier": hd.sr.TrackingIdentifier(
            uid=source.uid("track", str(session.segment), session.name), identifier=label
        ),
        "finding_type": code.NODULE,
        "finding_sites": [hd.sr.FindingSite(anatomic_location=code.LUNG)],
        "session": session.name,
        "measurements": list(session.measurements),
        "qualitative_evaluations": list(session.evaluations),
    }
    if seg is not None and session.segment is not None:
        millimetres = round(volumes_mm3[session.segment - 1], 3)
        volume = hd.sr.Measurement(name=code.VOLUME, value=millimetres, unit=code.CUBIC_MILLIMETRE)
        common["measurements"] = [volume, *session.measurements]
        return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
            referenced_segment=hd.sr.ReferencedSegment(
                sop_class_uid=seg.SOPClassUID,
                sop_instance_uid=seg.SOPInstanceUID,
                segment_number=session.segment,
                source_series=hd.sr.SourceSeriesForSegmentation(str(source.slices[0].SeriesInstanceUID)),
            ),
            **common,
        )
    frame = str(source.slices[0].get("FrameOfReferenceUID", ""))
    if place is None or not frame:
        middle = source.slices[len(source.slices) // 2]
        shown = hd.sr.SourceImageForMeasurementGroup(middle.SOPClassUID, middle.SOPInstanceUID)
        return hd.sr.MeasurementsAndQualitativeEvaluations(source_images=[shown], **common)
    centre = np.array(place.centre_mm, dtype=np.float64)
    if place.radius_mm is None:
        region = hd.sr.ImageRegion3D("POINT", centre[None], frame)
        return hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **common)
    ends = np.concatenate([centre + sign * place.radius_mm * axis[None] for axis in np.eye(3) for sign in (-1, 1)])
    surface = hd.sr.VolumeSurface(
        "ELLIPSOID", ends, frame,
        source_series=hd.sr.SourceSeriesForSegmentation(str(source.slices[0].SeriesInstanceUID)),
    )  # fmt: skip
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_volume_surface=surface, **common)


def _predictions(prediction: Mapping[str, Any], model_name: str) -> list[hd.sr.Measurement]:
    """One measurement per output; a 90 % interval is its upper and lower uncertainty."""
    algorithm = hd.sr.AlgorithmIdentification(name=f"{model_name}, research use only"[:64], version=__version__)
    measurements = []
    for name in OUTPUTS:
        column = {"malignancy": "malignancy_probability", "calcification": "p_calcified"}.get(name, name)
        value = number(prediction, column)
        if value is None:
            continue
        low, high = (number(prediction, f"{name}_{end}") for end in ("low", "high"))
        unit = code.MILLIMETRE if name == "diameter" else code.NO_UNIT if column != name else code.SCORE
        properties = None
        if low is not None and high is not None:
            properties = hd.sr.MeasurementProperties(
                level_of_significance=code.INTERVAL_90,
                upper_measurement_uncertainty=round(max(high - value, 0.0), 4),
                lower_measurement_uncertainty=round(max(value - low, 0.0), 4),
            )
            for item in properties:  # highdicom gives an uncertainty no unit: it is in the measurement's
                if item.ValueType == "NUM":
                    item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence = [hd.sr.CodedConcept.from_code(unit)]
        measurements.append(
            hd.sr.Measurement(
                code.predicted(name), round(value, 4), unit, algorithm_id=algorithm, properties=properties
            )
        )
    return measurements
