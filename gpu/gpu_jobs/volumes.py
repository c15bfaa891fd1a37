"""A data set of grey volumes as one small file: slices as WebP, labels as PNG, headers as they are.

Read back it is a folder like the one that was packed, with the same names, so that whatever reads
data sets reads this one. Labels are what they were; images lose a little.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from gpu_jobs.errors import JobError
from vessa_client import UInt8Array, files

# Of the WebP pictures: of ACDC a quarter of the bytes, 47 dB. It is the same in all stretches of a
# run, which sees the same images so.
QUALITY = 95
INDEX, DECODERS = "index.json", 8
# Stored without gzip: every training reads all of them.
SUFFIX = ".nii"


@dataclass(frozen=True)
class Volume:
    """A file of the data set.

    Attributes:
        name: path in the data set, without suffix.
        labels: whether it is a label map.
        axis: along which its slices were cut.
        depth: how many there are.
        header: of NIfTI, as hexadecimal digits.
    """

    name: str
    labels: bool
    axis: int
    depth: int
    header: str

    def picture(self, index: int) -> str:
        """Name of a slice in the pack."""
        return f"{self.name}/{index:03d}"


def write(data: Path, splits: Sequence[str], file: Path) -> None:
    """Pack the volumes of the folders ``splits`` of a data set.

    Raises:
        JobError: a volume is not of uint8.
        FileError: a file cannot be read.
    """
    volumes: list[Volume] = []
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    with zipfile.ZipFile(partial, "w") as archive:
        for path in [path for split in splits for path in sorted((data / split).rglob("*.nii*"))]:
            volume, slices = _read(data, path)
            volumes.append(volume)
            for index, pixels_HW in enumerate(slices):
                archive.writestr(volume.picture(index), _encoded(pixels_HW, labels=volume.labels))
        archive.writestr(INDEX, json.dumps([asdict(volume) for volume in volumes]))
    partial.replace(file)


def _read(data: Path, path: Path) -> tuple[Volume, list[UInt8Array]]:
    image = nib.load(path)
    pixels = np.asanyarray(image.dataobj)
    if not isinstance(image, nib.Nifti1Image) or pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise JobError(f"{path}: {pixels.dtype}, shape {pixels.shape}; expected a uint8 volume")
    axis = files.acquired_axis(path)
    assert axis is not None
    name = str(path.relative_to(data).with_name(files.stem(path)))
    labels = files.stem(path).endswith(files.LABEL_SUFFIX)
    header = bytes(image.header.binaryblock).hex()
    slices = [np.ascontiguousarray(s) for s in np.moveaxis(pixels, axis, 0)]
    return Volume(name, labels, axis, len(slices), header), slices


def read(file: Path, target: Path, wanted: Callable[[str], bool] = lambda name: True) -> int:
    """Write the volumes whose names are ``wanted`` as NIfTI below ``target``; returns how many.

    Raises:
        JobError: the pack is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive, ThreadPoolExecutor(DECODERS) as pool:
            volumes = [Volume(**v) for v in json.loads(archive.read(INDEX)) if wanted(v["name"])]
            for volume in volumes:
                data = [archive.read(volume.picture(index)) for index in range(volume.depth)]
                _write(target, volume, list(pool.map(_decoded, data)))
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, OSError) as error:
        raise JobError(f"{file}: cannot be read: {error!r}; prepare again") from error
    return len(volumes)


def _write(target: Path, volume: Volume, slices: list[UInt8Array]) -> None:
    path = target / f"{volume.name}{SUFFIX}"
    path.parent.mkdir(parents=True, exist_ok=True)
    header = nib.Nifti1Header(bytes.fromhex(volume.header))
    pixels = np.ascontiguousarray(np.stack(slices, axis=volume.axis))
    nib.save(nib.Nifti1Image(pixels, header.get_best_affine(), header), path)


def _encoded(pixels_HW: UInt8Array, *, labels: bool) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels_HW)
    if labels:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def _decoded(data: bytes) -> UInt8Array:
    with Image.open(io.BytesIO(data)) as picture:
        # WebP itself knows colours only.
        return np.asarray(picture.convert("L"), dtype=np.uint8)
