"""Annotated slices of all sources as a few tensors: what a device holds while it trains.

In memory images are planes of uint8 of one side, small ones in the upper left corner; grey
images have one plane, coloured ones three. On disk they are WebP pictures and labels PNG, in one
safetensors file whose digest is kept beside it.

Axes: L planes, R slices, C classes, H W space.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vessa_client import UInt8Array, files
from vessa_common.layouts import DataError
from vessa_server.model import checkpoint
from vessa_server.model.preprocess import to_unit_range
from vessa_server.training.tasks import MAX_CLASSES, ClassText, PackedSlice

IntArray = npt.NDArray[np.int64]
FORMAT = "vessa-pack-1"
DIGEST_SUFFIX = ".sha256"
MAX_SLICES, MAX_SIDE = 1_000_000, 4096


@dataclass(frozen=True, kw_only=True)
class PackedSource:
    """A data set of the pack.

    Attributes:
        name: of the data set.
        texts: name and description of classes 1, 2, ...
        weight: share of the tasks, relative to the other sources.
        mirror: whether mirrored and turned images are of the same kind.
    """

    name: str
    texts: tuple[ClassText, ...]
    weight: float = 1.0
    mirror: bool = True


@dataclass(frozen=True)
class Pack:
    """All slices.

    Attributes:
        sources: what the slices are of.
        planes_LHW: uint8 planes.
        labels_RHW: uint8 label maps; values are 1-based classes of the source.
        plane_R3: the planes of red, green and blue; three times the same for grey.
        size_R2: height and width of each slice on its plane.
        source_R, subject_R: which source and subject each is of.
        axis_R: along which a volume was cut; -1 for pictures.
        position_R: in the volume, 0 to 1 over the annotated part, beyond it below 0 or above 1.
        held_out_R: whether its subject is kept out of training.
    """

    sources: tuple[PackedSource, ...]
    planes_LHW: Tensor
    labels_RHW: Tensor
    plane_R3: IntArray
    size_R2: IntArray
    source_R: IntArray
    subject_R: IntArray
    axis_R: IntArray
    position_R: npt.NDArray[np.float64]
    held_out_R: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.source_R)

    @property
    def side(self) -> int:
        """Height and width of the planes."""
        return int(self.planes_LHW.shape[-1])

    def image(self, row: int) -> UInt8Array:
        """Slice ``row`` as it was packed, (H, W, 3)."""
        height, width = self.size_R2[row]
        planes = self.planes_LHW[torch.from_numpy(self.plane_R3[row])]
        cropped: UInt8Array = planes[:, :height, :width].permute(1, 2, 0).cpu().numpy()
        return cropped

    def label(self, row: int) -> UInt8Array:
        """Label map of slice ``row``, (H, W)."""
        height, width = self.size_R2[row]
        cropped: UInt8Array = self.labels_RHW[row, :height, :width].cpu().numpy()
        return cropped

    def digest(self) -> str:
        """Of pictures, labels, whom they are of, and what it is called."""
        parts = [repr(self.sources).encode()]
        parts += [np.ascontiguousarray(getattr(self, name)).tobytes() for name in _COLUMNS]
        digest = hashlib.sha256(b"".join(parts))
        for tensor in (self.planes_LHW, self.labels_RHW):
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def present(self) -> npt.NDArray[np.bool_]:
        """Which classes each slice shows, (R, MAX_CLASSES + 1); the first column is no class."""
        shown = np.zeros((len(self), MAX_CLASSES + 1), dtype=bool)
        for row in range(len(self)):
            shown[row, np.unique(self.labels_RHW[row].cpu().numpy())] = True
        shown[:, 0] = False
        return shown


def side_for(canvas: int) -> int:
    """Of packed images for a canvas: closer looks need more pixels than it has."""
    return canvas * 4 // 3


def build(sources: list[tuple[PackedSource, list[PackedSlice]]], side: int) -> Pack:
    """Put slices into tensors; those longer than ``side`` are made smaller.

    Raises:
        DataError: there are none, or a subject is trained on and held out.
    """
    planes: list[UInt8Array] = []
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    labels: list[UInt8Array] = []
    subjects: dict[tuple[int, str], int] = {}
    for number, (_, slices) in enumerate(sources):
        for item in slices:
            image, label = _fitted(_scaled(item.image), item.labels, side)
            channels = [image] if image.ndim == 2 else list(np.moveaxis(image, 2, 0))
            first = len(planes)
            planes += [_placed(channel, side) for channel in channels]
            labels.append(_placed(label, side))
            subject = subjects.setdefault((number, item.subject), len(subjects))
            columns["plane_R3"].append([first + c % len(channels) for c in range(3)])
            columns["size_R2"].append(label.shape)
            columns["source_R"].append(number)
            columns["subject_R"].append(subject)
            columns["axis_R"].append(item.axis)
            columns["position_R"].append(item.position)
            columns["held_out_R"].append(item.held_out)
    if not labels:
        raise DataError("data: there are no annotated slices to train on")
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.array(values, dtype=_COLUMNS[name]) for name, values in columns.items()
    }
    _check_sides(arrays)
    return Pack(
        tuple(source for source, _ in sources),
        torch.from_numpy(np.stack(planes)),
        torch.from_numpy(np.stack(labels)),
        **arrays,
    )


def _check_sides(columns: dict[str, npt.NDArray[Any]]) -> None:
    """Refuse a subject that is trained on and held out."""
    held_out = columns["held_out_R"]
    subjects = columns["subject_R"]
    both = np.intersect1d(subjects[held_out], subjects[~held_out])
    if both.size:
        raise DataError(f"pack: subject {both[0]} is held out and trained on; pack again")


def write(pack: Pack, file: Path, *, quality: int = 80) -> str:
    """Write the pack, and its digest beside it; returns the digest.

    Args:
        pack: what to write.
        file: its name; ``file.sha256`` holds the digest.
        quality: of the WebP pictures, 1 to 100; 100 is without loss.
    """
    images = [_picture(pack.image(row), quality) for row in range(len(pack))]
    labels = [_labels(pack.label(row)) for row in range(len(pack))]
    tensors = {
        "image_bytes": torch.from_numpy(np.frombuffer(b"".join(images), dtype=np.uint8).copy()),
        "label_bytes": torch.from_numpy(np.frombuffer(b"".join(labels), dtype=np.uint8).copy()),
        "image_length_R": torch.tensor([len(b) for b in images]),
        "label_length_R": torch.tensor([len(b) for b in labels]),
    }
    for name in _COLUMNS:
        if name != "plane_R3":
            tensors[name] = torch.from_numpy(getattr(pack, name))
    described = TypeAdapter(tuple[PackedSource, ...]).dump_json(pack.sources).decode()
    metadata = {"format": FORMAT, "side": str(pack.side), "sources": described}
    checkpoint.write_safetensors(file, tensors, metadata)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    files.write_text(file.with_name(file.name + DIGEST_SUFFIX), digest + "\n")
    return digest


def read(file: Path) -> Pack:
    """Read a pack that :func:`write` made, checked by the digest beside it.

    Raises:
        DataError: a file is missing or damaged, or is no pack.
    """
    beside = file.with_name(file.name + DIGEST_SUFFIX)
    for needed in (file, beside):
        if not needed.is_file():
            raise DataError(f"pack: no file {needed}; make it with `vessa-server pack`")
    expected, found = beside.read_text().strip(), hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise DataError(
            f"pack: {file} is damaged or another one: sha256 {found[:12]}, expected "
            f"{expected[:12]}; copy it again, or make it anew with `vessa-server pack`"
        )
    try:
        with safe_open(file, framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT:
            raise DataError(f"pack: {file} is not of the format {FORMAT}")
        sources = TypeAdapter(tuple[PackedSource, ...]).validate_json(metadata["sources"])
        return _unpacked(sources, int(metadata["side"]), tensors)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"pack: {file} cannot be read: {error}") from error


def _unpacked(sources: tuple[PackedSource, ...], side: int, tensors: dict[str, Tensor]) -> Pack:
    columns = {n: t.numpy() for n, t in tensors.items() if n in _COLUMNS}
    count = len(columns["source_R"])
    if count > MAX_SLICES or not 0 < side <= MAX_SIDE:
        raise DataError(f"pack: {count} slices of side {side}, more than {MAX_SLICES}, {MAX_SIDE}")
    if not (columns["source_R"] >= 0).all() or not (columns["source_R"] < len(sources)).all():
        raise DataError(f"pack: slices of other sources than the {len(sources)} it names")
    _check_sides(columns)
    images = _split(tensors["image_bytes"], tensors["image_length_R"])
    labels = _split(tensors["label_bytes"], tensors["label_length_R"])
    planes: list[UInt8Array] = []
    plane_R3 = []
    label_RHW = np.zeros((count, side, side), dtype=np.uint8)
    for row in range(count):
        image = _decoded(images[row], side)
        channels = [image] if image.ndim == 2 else list(np.moveaxis(image, 2, 0))
        plane_R3.append([len(planes) + c % len(channels) for c in range(3)])
        planes += [_placed(channel, side) for channel in channels]
        label_RHW[row] = _placed(_decoded(labels[row], side), side)
    if label_RHW.max() > MAX_CLASSES:
        raise DataError(f"pack: label {label_RHW.max()}, expected at most {MAX_CLASSES}")
    return Pack(
        sources,
        torch.from_numpy(np.stack(planes)),
        torch.from_numpy(label_RHW),
        plane_R3=np.array(plane_R3, dtype=np.int64),
        **columns,
    )


def _split(data: Tensor, length_R: Tensor) -> list[bytes]:
    whole, ends = data.numpy().tobytes(), np.cumsum(length_R.numpy())
    if int(length_R.min()) < 0 or int(ends[-1]) != len(whole):
        raise DataError("pack: lengths do not add up")
    return [whole[e - n : e] for e, n in zip(ends.tolist(), length_R.tolist(), strict=True)]


def _decoded(data: bytes, side: int) -> UInt8Array:
    # The marker of grey pictures: WebP itself knows colours only.
    grey, encoded = data[:1] == b"L", data[1:]
    with Image.open(io.BytesIO(encoded)) as picture:
        if max(picture.size) > side:
            raise DataError(f"pack: a picture of {picture.size} pixels, expected up to {side}")
        return np.asarray(picture.convert("L" if grey else "RGB"), dtype=np.uint8)


def _picture(image_HW3: UInt8Array, quality: int) -> bytes:
    grey = bool((image_HW3 == image_HW3[..., :1]).all())
    picture = Image.fromarray(np.ascontiguousarray(image_HW3[..., 0]) if grey else image_HW3)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, lossless=quality == 100, method=6)
    return (b"L" if grey else b"C") + buffer.getvalue()


def _labels(labels_HW: UInt8Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(labels_HW)).save(buffer, "PNG", optimize=True)
    return b"L" + buffer.getvalue()


def _scaled(image: UInt8Array) -> UInt8Array:
    """Intensities as serving scales them, each slice on its own."""
    scaled = (255 * to_unit_range(image)).round().to(torch.uint8).numpy()
    return np.ascontiguousarray(scaled[0] if image.ndim == 2 else scaled.transpose(1, 2, 0))


def _fitted(image: UInt8Array, labels: UInt8Array, side: int) -> tuple[UInt8Array, UInt8Array]:
    height, width = labels.shape
    scale = side / max(height, width)
    if scale >= 1:
        return image, labels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    smaller = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    return np.asarray(smaller), np.asarray(
        Image.fromarray(labels).resize(size, Image.Resampling.NEAREST)
    )


def _placed(plane_HW: npt.NDArray[np.uint8], side: int) -> UInt8Array:
    out = np.zeros((side, side), dtype=np.uint8)
    out[: plane_HW.shape[0], : plane_HW.shape[1]] = plane_HW
    return out


_COLUMNS: dict[str, type] = {
    "plane_R3": np.int64,
    "size_R2": np.int64,
    "source_R": np.int64,
    "subject_R": np.int64,
    "axis_R": np.int64,
    "position_R": np.float64,
    "held_out_R": np.bool_,
}


def describe(pack: Pack) -> str:
    """One line for each source: slices, subjects, held-out subjects, classes."""
    lines = []
    for number, source in enumerate(pack.sources):
        rows = pack.source_R == number
        subjects = len(np.unique(pack.subject_R[rows]))
        held = len(np.unique(pack.subject_R[rows & pack.held_out_R]))
        names = ", ".join(text.name for text in source.texts)
        lines.append(
            f"{source.name}: {int(rows.sum())} slices of {subjects} subjects, "
            f"{held} held out; {names}"
        )
    return "\n".join(lines)


def without(pack: Pack, names: list[str]) -> Pack:
    """The pack less the data sets called ``names``; the others keep their places.

    Raises:
        DataError: there is no data set of that name.
    """
    known = [source.name for source in pack.sources]
    for name in names:
        if name not in known:
            raise DataError(f"pack: no data set {name!r}, expected one of {', '.join(known)}")
    left_out = np.isin(pack.source_R, [i for i, name in enumerate(known) if name in names])
    rows = np.flatnonzero(~left_out)
    columns = {n: getattr(pack, n)[rows] for n in _COLUMNS}
    labels_RHW = pack.labels_RHW[torch.from_numpy(rows)]
    return Pack(pack.sources, pack.planes_LHW, labels_RHW, **columns)
