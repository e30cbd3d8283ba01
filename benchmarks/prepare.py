"""Seconds and peak memory per scan of ``prepare``, split into read, resample and write, on full-size series.

Writes series of 512 x 512 pixels with the slices, nodules and UIDs of real LIDC-IDRI scans and noise for pixels
(``--simulated``: simulated chests), then prepares them into a store.

    python benchmarks/prepare.py --scans 4 --slices 250 --jobs 1 --jobs 2
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from joblib.externals.loky import get_reusable_executor
from pydantic import Field
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from lidc_xai.annotations import Nodule, load_nodules
from lidc_xai.commands.common import need_out
from lidc_xai.commands.script import run_script
from lidc_xai.config import Config
from lidc_xai.imaging import prepare_dicom
from lidc_xai.run import Run


class Options(Config):
    """Which series are prepared, and by how many processes."""

    scans: int = Field(4, ge=1, description="Number of series.")
    slices: int = Field(250, ge=1, description="Take scans with about so many slices.")
    jobs: list[int] = Field([1], min_length=1, description="Worker processes; repeat to compare.")
    simulated: bool = Field(False, description="Simulated chests instead of noise (slower to write).")
    keep: Path | None = Field(None, description="Folder for the series, used again when it has them.")


def compare(options: Options, run: Run) -> None:
    """Prepare the same series with each number of processes and print a row."""
    if options.out:
        need_out(options)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch) / "dicom"
        scans = choose_scans(options.scans, options.slices)
        for nodules in scans:
            write_scan(folder, nodules, options.simulated)
        rows = [measure(folder, Path(scratch) / f"store-{jobs}", jobs) for jobs in options.jobs]
    slices = [len(np.unique(nodules[0].slice_positions_mm)) for nodules in scans]
    print(f"{len(scans)} scans of 512 x 512 x {min(slices)} to {max(slices)}, {rows[0]['nodules']} nodules")
    print("jobs  s/scan  CPU s/scan  read  resample  write  scans/min  peak MiB per process")
    for row in rows:
        parts = f"{row['read']:4.2f}  {row['resample']:8.2f}  {row['write']:5.2f}"
        rate = 60 * len(scans) / row["wall"]
        print(
            f"{row['jobs']:4}  {row['wall'] / len(scans):6.2f}  {row['cpu']:10.2f}  {parts}  {rate:9.1f}  "
            f"{row['peak_mib']:.0f}"
        )
    run.results = {"slices": slices, "runs": rows}


def choose_scans(count: int, slices: int) -> list[list[Nodule]]:
    """The nodules of the scans whose number of slices is nearest to ``slices``."""
    by_series: dict[str, list[Nodule]] = defaultdict(list)
    for nodule in load_nodules():
        by_series[nodule.series_uid].append(nodule)
    return sorted(by_series.values(), key=lambda found: abs(len(np.unique(found[0].slice_positions_mm)) - slices))[
        :count
    ]


def write_scan(folder: Path, nodules: list[Nodule], simulated: bool) -> None:
    """Write the whole series of a scan, unless it is there."""
    first = nodules[0]
    if (folder / first.patient_id).exists():
        return
    if simulated:
        from lidc_xai.simulate import simulate_ct, write_dicom

        write_dicom(simulate_ct(nodules, scope="full"), folder)
        return
    target = folder / first.patient_id / first.study_uid / first.series_uid
    target.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(174, 40, (512, 1024)).astype("<i2")  # −850 HU, as lung
    for k, z in enumerate(np.unique(first.slice_positions_mm)):
        shift = 37 * k % 512
        dataset = slice_dataset(first, k, float(z))
        dataset.PixelData = np.ascontiguousarray(noise[:, shift : shift + 512]).tobytes()
        dataset.save_as(target / f"{k:04d}.dcm", enforce_file_format=True)


def slice_dataset(nodule: Nodule, k: int, z: float) -> Dataset:
    """The header of slice ``k`` of a nodule's series."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=[nodule.series_uid, str(k)])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = nodule.series_uid, nodule.study_uid
    dataset.Modality, dataset.PatientID, dataset.InstanceNumber = "CT", nodule.patient_id, k + 1
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = ["-170", "-170", f"{z:.6f}"]
    dataset.PixelSpacing = [f"{nodule.pixel_spacing_mm:.6f}"] * 2
    dataset.SliceThickness = nodule.slice_thickness_mm
    dataset.Rows = dataset.Columns = 512
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"
    return dataset


def measure(folder: Path, store: Path, jobs: int) -> dict[str, Any]:
    """One run of prepare in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(folder, store, jobs, send))
    process.start()
    result = receive.recv()
    process.join()
    return result


def _run(folder: Path, store: Path, jobs: int, send: Any) -> None:
    load_nodules()  # the annotations are read once, whatever the number of scans
    start, cpu = perf_counter(), process_time()
    result = prepare_dicom(folder, store, jobs=jobs)
    wall = perf_counter() - start
    if jobs != 1:
        get_reusable_executor().shutdown(wait=True)  # only of workers that ended does the system tell the peak
    scans = len(list(folder.iterdir()))
    workers_used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = process_time() - cpu + workers_used.ru_utime + workers_used.ru_stime
    mine, workers = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    send.send(
        {
            "jobs": jobs,
            "wall": wall,
            "cpu": cpu / scans,
            **{part: seconds / scans for part, seconds in result.seconds.items()},
            "nodules": len(result.written),
            "skipped": len(result.skipped),
            "peak_mib": mine if jobs == 1 else workers,
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The script; returns its exit code."""
    return run_script("prepare", Options, compare, __doc__ or "", arguments)


if __name__ == "__main__":
    raise SystemExit(main())
