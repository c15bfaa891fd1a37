"""DICOM series that are made up, and those that come with pydicom."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
VOXELS_ZRC = np.random.default_rng(0).integers(0, 4000, (5, 12, 9)).astype(np.uint16)


def write_series(
    folder: Path,
    voxels_ZRC: np.ndarray[Any, Any] = VOXELS_ZRC,
    *,
    along: Sequence[Sequence[float]] = ((1, 0, 0), (0, 1, 0)),
    step: Sequence[float] | None = None,
    uid: str = "",
    names: str = "IM{:04d}",
    **attributes: Any,
) -> list[Path]:
    """Slices in a random order of names; ``along``: directions of a row and of a column."""
    folder.mkdir(parents=True, exist_ok=True)
    series, study, space = uid or generate_uid(), generate_uid(), generate_uid()
    normal = np.cross(np.array(along[0], float), np.array(along[1], float))
    moved = np.array(step if step is not None else 4.0 * normal)
    order = np.random.default_rng(1).permutation(len(voxels_ZRC))
    written = []
    for z, plane in enumerate(voxels_ZRC):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / names.format(order[z])
        data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.FrameOfReferenceUID, data.Modality = space, "MR"
        data.PatientID, data.PatientName, data.PatientSex = "1", "A^B", "O"
        data.PatientBirthDate = data.StudyDate = data.StudyTime = data.AccessionNumber = ""
        data.StudyID, data.SeriesNumber, data.InstanceNumber = "1", 1, int(order[z]) + 1
        data.ReferringPhysicianName = data.PositionReferenceIndicator = ""
        data.ImageOrientationPatient = [*map(float, along[0]), *map(float, along[1])]
        data.ImagePositionPatient = [round(float(v), 6) for v in np.array([-20, 30, 7]) + z * moved]
        data.PixelSpacing, data.SliceThickness = [1.5, 0.75], 4.0
        data.Rows, data.Columns = plane.shape
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.PixelData = plane.tobytes()
        for name, value in attributes.items():
            setattr(data, name, value(z) if callable(value) else value)
        data.save_as(path, enforce_file_format=True)
        written.append(path)
    return written


def zip_of(paths: Sequence[Path]) -> bytes:
    """A zip of some files."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    return stream.getvalue()
