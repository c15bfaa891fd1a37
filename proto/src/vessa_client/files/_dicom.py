"""DICOM: a file, a folder or a zip of one series, as one volume.

Axes: N frames, R rows, C columns; X Y Z of the volume are columns, rows, and rising slices.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from vessa_client._types import AnyArray
from vessa_client.files import _dicom_files
from vessa_client.files._errors import FileError

if TYPE_CHECKING:
    from pydicom import Dataset

FloatArray = npt.NDArray[np.float64]
# From DICOM's axes (left, posterior, superior) to NIfTI's.
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Slices are parallel up to this (of unit vectors), and evenly spaced up to this part of a spacing.
PARALLEL, EVEN = 1e-3, 0.1
MAX_ZIP_BYTES = 16 << 30
NEEDED = ("Rows", "Columns", "PhotometricInterpretation", "BitsStored")
# Objects with pixels that are no images.
NO_IMAGES = ("RTDOSE", "SEG", "RTIMAGE", "RWV")
CAPTURES = "1.2.840.10008.5.1.4.1.1.7"  # of screens and films, with all that begin so
COLOUR = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane of a data set.

    Attributes:
        name: of its file.
        dataset: with all that is known of it.
        index: which of the data set's frames.
        position: (3,) of its first pixel, in mm; None where it has no place in space.
        orientation: (2, 3), along a row and along a column.
        spacing: (2,), between rows and between columns, in mm.
        order: of frames at one place.
    """

    name: str
    dataset: Dataset
    index: int
    position: FloatArray | None
    orientation: FloatArray | None
    spacing: tuple[float, float]
    order: tuple[float, ...]

    @property
    def normal(self) -> FloatArray:
        """(3,) towards which slices rise."""
        assert self.orientation is not None
        return np.cross(self.orientation[0], self.orientation[1])

    @property
    def height(self) -> float:
        """Along the normal, in mm."""
        assert self.position is not None
        return float(self.position @ self.normal)


def recognises(path: Path) -> bool:
    """Whether a path is DICOM."""
    return _dicom_files.is_dicom(path)


def load(path: Path, frame: int | None) -> nib.Nifti1Image:
    """A series as a volume in its unit, such as Hounsfield's.

    Raises:
        FileError: several series, missing or doubled slices, slices of several sizes or
            directions, or several frames at each place and none chosen.
    """
    frames = series(path, frame)
    planes = _planes(path, frames)
    if planes.ndim == 4:
        planes = np.ascontiguousarray(planes).view(COLOUR)[..., 0]
    if frames[0].position is None:
        # Frames without a place: a film; rows stay rows.
        rows, columns = frames[0].spacing
        return nib.Nifti1Image(planes, np.diag([1.0, rows, columns, 1.0]), dtype=planes.dtype)
    return nib.Nifti1Image(planes.transpose(2, 1, 0), _affine(frames), dtype=planes.dtype)


def modality(path: Path) -> str | None:
    """Of a series, by the header of its first image; None of captures of a screen."""
    import pydicom

    tags = ["Modality", "Rows", "SOPClassUID"]
    for name, content in _contents(path):
        forced = name.lower().endswith(_dicom_files.SUFFIXES)
        header = pydicom.dcmread(content, stop_before_pixels=True, specific_tags=tags, force=forced)
        found = str(header.get("Modality") or "")
        if "Rows" in header and found not in NO_IMAGES:
            captured = str(header.get("SOPClassUID") or "").startswith(CAPTURES)
            return None if captured else found or None
    return None


def series(path: Path, frame: int | None = None) -> list[Frame]:
    """The planes of a series in rising order.

    Args:
        path: file, folder or zip.
        frame: which of those at each place, where there are several.

    Raises:
        FileError: as :func:`load`.
    """
    frames = [plane for name, dataset in datasets(path) for plane in _frames(name, dataset)]
    if not frames:
        raise FileError(f"{path}: no DICOM images in it")
    _check_one_series(path, frames)
    if frames[0].position is None:
        if len({plane.name for plane in frames}) > 1:
            raise FileError(
                f"{path}: {len(frames)} images without a place in space ({frames[0].name}, "
                f"{frames[1].name}, ...); give one file"
            )
        return frames if frame is None else _chosen(path, [frames], frame)
    _check_parallel(path, frames)
    places = _places(frames)
    frames = _chosen(path, places, frame)
    _check_even(path, frames)
    return frames


def datasets(path: Path) -> Iterator[tuple[str, Dataset]]:
    """Those of a series' images, one after the other, with the names of their files."""
    import pydicom

    for name, content in _contents(path):
        try:
            dataset = pydicom.dcmread(content, force=name.lower().endswith(_dicom_files.SUFFIXES))
        except Exception as error:
            raise FileError(f"{path / name}: cannot be read as DICOM ({error})") from error
        has_pixels = "PixelData" in dataset or "FloatPixelData" in dataset
        if has_pixels and dataset.get("Modality") not in NO_IMAGES:
            missing = [word for word in NEEDED if dataset.get(word) is None]
            if missing:
                raise FileError(f"{path / name}: DICOM without {', '.join(missing)}")
            yield name, dataset


def _contents(path: Path) -> Iterator[tuple[str, Path | io.BytesIO]]:
    """Names and contents of the files that may be DICOM."""
    if path.is_dir():
        yield from ((f.name, f) for f in sorted(path.iterdir()) if _dicom_files.is_dicom_file(f))
    elif path.suffix.lower() != _dicom_files.ZIP:
        yield path.name, path
    else:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            if sum(entry.file_size for entry in entries) > MAX_ZIP_BYTES:
                raise FileError(f"{path}: unpacks to more than {MAX_ZIP_BYTES >> 30} GiB")
            for entry in sorted(entries, key=lambda e: e.filename):
                data = archive.read(entry)
                if _dicom_files.is_dicom_content(data):
                    yield entry.filename, io.BytesIO(data)


def _frames(name: str, dataset: Dataset) -> Iterator[Frame]:
    count = int(dataset.get("NumberOfFrames") or 1)
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for index in range(count):
        groups = [group for group in (own[index] if index < len(own) else None, shared) if group]
        position = _value(dataset, groups, "PlanePositionSequence", "ImagePositionPatient")
        turned = _value(dataset, groups, "PlaneOrientationSequence", "ImageOrientationPatient")
        spacing = _value(dataset, groups, "PixelMeasuresSequence", "PixelSpacing")
        placed = position is not None and turned is not None and (count == 1 or bool(own))
        spacing = spacing or dataset.get("ImagerPixelSpacing") or (1.0, 1.0)
        yield Frame(
            name,
            dataset,
            index,
            np.array(position, dtype=np.float64) if placed else None,
            np.array(turned, dtype=np.float64).reshape(2, 3) if placed else None,
            (float(spacing[0]), float(spacing[1])),
            _order(dataset, groups, index),
        )


def _order(dataset: Dataset, groups: Sequence[Dataset], index: int) -> tuple[float, ...]:
    """By which frames at one place are told apart."""
    names = ("TemporalPositionIdentifier", "EchoNumbers", "TriggerTime", "AcquisitionNumber")
    values = [dataset.get(name) for name in names]
    content = [g.FrameContentSequence[0] for g in groups if "FrameContentSequence" in g]
    values += [item.get("TemporalPositionIndex") for item in content]
    return (
        *(float(value or 0) for value in values),
        float(dataset.get("InstanceNumber") or 0),
        index,
    )


def _value(dataset: Dataset, groups: Sequence[Dataset], sequence: str, name: str) -> Any:
    """An attribute of a frame: in its groups (enhanced objects), or in the data set."""
    for group in groups:
        item = _first(group.get(sequence))
        if item is not None and item.get(name):
            return item.get(name)
    return dataset.get(name) or None


def _first(sequence: Any) -> Any:
    return sequence[0] if sequence else None


def _check_one_series(path: Path, frames: Sequence[Frame]) -> None:
    found: dict[str, list[Frame]] = {}
    for plane in frames:
        found.setdefault(str(plane.dataset.get("SeriesInstanceUID", "")), []).append(plane)
    if len(found) > 1:
        said = [
            f"{planes[0].dataset.get('SeriesDescription') or uid!r} ({len(planes)} images, "
            f"{planes[0].name})"
            for uid, planes in found.items()
        ]
        raise FileError(f"{path}: {len(found)} series: {', '.join(said)}; one folder for each")
    sizes = {(int(p.dataset.Rows), int(p.dataset.Columns)): p.name for p in frames}
    if len(sizes) > 1:
        said = [f"{name} has {rows} x {columns}" for (rows, columns), name in sizes.items()]
        raise FileError(f"{path}: slices of several sizes: {', '.join(said)} pixels")


def _check_parallel(path: Path, frames: Sequence[Frame]) -> None:
    first = frames[0]
    for plane in frames:
        if plane.position is None or plane.orientation is None:
            raise FileError(f"{path}: {plane.name} has no place in space, {first.name} has")
        assert first.orientation is not None
        if not np.allclose(plane.orientation, first.orientation, atol=PARALLEL):
            raise FileError(
                f"{path}: {plane.name} is not parallel to {first.name}; a localizer among slices?"
            )
        if not np.allclose(plane.spacing, first.spacing, rtol=1e-3):
            raise FileError(f"{path}: {plane.name} has other pixels than {first.name}")


def _places(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Frames at each place, in rising order."""
    ordered = sorted(frames, key=lambda plane: (plane.height, plane.order))
    places: list[list[Frame]] = []
    for plane in ordered:
        if places and abs(plane.height - places[-1][0].height) < 1e-3:
            places[-1].append(plane)
        else:
            places.append([plane])
    return [sorted(place, key=lambda plane: plane.order) for place in places]


def _chosen(path: Path, places: Sequence[Sequence[Frame]], frame: int | None) -> list[Frame]:
    """The frame at each place."""
    counts = {len(place) for place in places}
    if counts == {1}:
        return [place[0] for place in places]
    if len(counts) > 1:
        most = max(places, key=len)
        names = ", ".join(plane.name for plane in most[:3])
        raise FileError(f"{path}: {len(most)} images at one place ({names}): doubled slices")
    count = counts.pop()
    if frame is None:
        raise FileError(
            f"{path}: {count} images at each place, a film or several echoes; choose one with "
            f"--frame 0..{count - 1}"
        )
    if frame >= count:
        raise FileError(f"{path}: {count} frames or channels, expected more than {frame}")
    return [place[frame] for place in places]


def _check_even(path: Path, frames: Sequence[Frame]) -> None:
    heights = np.array([plane.height for plane in frames])
    gaps = np.diff(heights)
    if len(gaps) < 2:
        return
    usual = float(np.median(gaps))
    for k, gap in enumerate(gaps):
        if abs(gap - usual) > EVEN * usual:
            between = f"between {frames[k].name} and {frames[k + 1].name}"
            missing = round(float(gap) / usual) - 1
            what = f"{missing} slices are missing" if missing > 0 else "slices are unevenly spaced"
            raise FileError(f"{path}: {what} {between} ({gap:.4g} mm, others {usual:.4g} mm)")


def _affine(frames: Sequence[Frame]) -> FloatArray:
    """From columns, rows and slices to mm, in NIfTI's axes."""
    first, last = frames[0], frames[-1]
    assert first.orientation is not None
    assert first.position is not None
    assert last.position is not None
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing[1]
    affine[:3, 1] = first.orientation[1] * first.spacing[0]
    if len(frames) > 1:
        affine[:3, 2] = (last.position - first.position) / (len(frames) - 1)
    else:
        affine[:3, 2] = first.normal * float(first.dataset.get("SliceThickness") or 1)
    affine[:3, 3] = first.position
    return TO_RAS @ affine


def _planes(path: Path, frames: Sequence[Frame]) -> AnyArray:
    """(N, R, C) or (N, R, C, 3), in the unit of the series."""
    decoded: dict[int, AnyArray] = {}
    for plane in frames:
        if id(plane.dataset) not in decoded:
            decoded[id(plane.dataset)] = _decoded(path, plane)
    planes = [decoded[id(plane.dataset)][plane.index] for plane in frames]
    return np.stack([_in_unit(plane, pixels) for plane, pixels in zip(frames, planes, strict=True)])


def _decoded(path: Path, plane: Frame) -> AnyArray:
    """All frames of a data set as stored; colours as RGB."""
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    dataset = plane.dataset
    try:
        pixels = pixel_array(dataset)
    except Exception as error:
        syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
        known = f" ({syntax.name})" if syntax else ""
        reason = " ".join(str(error).split())[:200]
        raise FileError(
            f"{path}: {plane.name}: pixels cannot be decoded{known}: {reason}; "
            "`pip install pylibjpeg[all]` has more decoders"
        ) from error
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if int(dataset.get("SamplesPerPixel", 1)) == 3 or pixels.shape[-1:] == (3,):
        pixels = (pixels >> 8 * (pixels.dtype.itemsize - 1)).astype(np.uint8)
    single = int(dataset.get("NumberOfFrames") or 1) == 1
    return pixels[None] if single else pixels


def _in_unit(plane: Frame, pixels: AnyArray) -> AnyArray:
    """Rescaled, and bright where it should be."""
    from pydicom.pixels.processing import apply_modality_lut

    dataset = plane.dataset
    if pixels.ndim == 3:
        return pixels
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups = [group for group in (own[plane.index] if own else None, shared) if group]
    rules = [_first(group.get("PixelValueTransformationSequence")) for group in groups]
    scaled = apply_modality_lut(pixels, next((rule for rule in rules if rule), dataset))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        highest = (1 << int(dataset.BitsStored)) - 1 if scaled is pixels else 0
        scaled = highest - scaled.astype(np.int32 if scaled.dtype.kind in "iu" else np.float32)
    return np.asarray(scaled, dtype=np.float32) if scaled.dtype == np.float64 else scaled
