"""Names of image, label and result files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vessa_client.files import _dicom_files
from vessa_client.files._errors import FileError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
NIFTI_SUFFIXES = (".nii.gz", ".nii")
NRRD_SUFFIXES = (".seg.nrrd", ".nrrd")
SUFFIXES = PICTURE_SUFFIXES + NIFTI_SUFFIXES + NRRD_SUFFIXES
_DICOM_SUFFIXES = (*_dicom_files.SUFFIXES, _dicom_files.ZIP)
KINDS = f"{', '.join(SUFFIXES)}, DICOM"
LABEL_SUFFIX = "_gt"


def stem(path: Path) -> str:
    """File name without ``.nii.gz`` and the like; of a folder its whole name."""
    if path.is_dir():
        return path.name
    for suffix in SUFFIXES + _DICOM_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def is_image(path: Path) -> bool:
    """Whether a path is an image: by its name, and of DICOM by its content."""
    if path.is_file() and path.name.lower().endswith(SUFFIXES):
        return True
    return _dicom_files.is_dicom(path)


def is_volume(path: Path) -> bool:
    """Whether a path says that it is a volume; DICOM counts as one, of one slice maybe."""
    if path.name.lower().endswith(SUFFIXES):
        return path.name.lower().endswith(NIFTI_SUFFIXES + NRRD_SUFFIXES)
    return _dicom_files.is_dicom(path)


def find_images(folder: Path, suffix: str = LABEL_SUFFIX) -> list[Path]:
    """Images of a folder without the label files, sorted; a DICOM series is its folder.

    Args:
        folder: of images, and folders of them.
        suffix: by which names of label files end.

    Raises:
        FileError: the folder is missing.
    """
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder")
    return sorted(image for image in _images(folder) if not stem(image).endswith(suffix))


def _images(folder: Path) -> Iterator[Path]:
    below = (path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())
    for place in (folder, *below):
        others = []
        for file in sorted(place.iterdir()):
            if file.name.startswith("."):  # such as ._scan.nii.gz of a Mac
                continue
            if file.is_file() and file.name.lower().endswith(SUFFIXES):
                yield file
            else:
                others.append(file)
        yield from _dicom_files.images(place, others)


def find_inputs(folder: Path, *outs: Path, endings: tuple[str, ...]) -> list[Path]:
    """Images of a folder that are no results of an earlier call.

    Args:
        folder: of the images.
        outs: folders of results; nothing below them is an image, unless the images lie there too.
        endings: of the results' names; where the images lie in a folder of results, names tell.

    Raises:
        FileError: the folder is missing, or there are no images.
    """
    source, places = folder.resolve(), [out.resolve() for out in outs]
    shared = any(source.is_relative_to(place) for place in places)
    apart = [place for place in places if not source.is_relative_to(place)]
    found = []
    for image in find_images(folder):
        lies = source / image.relative_to(folder)
        is_result = any(lies.is_relative_to(place) for place in apart)
        if not is_result and not (shared and stem(image).endswith(endings)):
            found.append(image)
    if not found:
        raise FileError(f"{folder}: no images ({KINDS})")
    return found


def find_label(image: Path, suffix: str = LABEL_SUFFIX, folder: Path | None = None) -> Path | None:
    """The label file of an image, of whatever format.

    Args:
        image: file, or folder of a series.
        suffix: after the image's name.
        folder: where label files are; beside the image by default. In a folder of their own they
            may have the image's name, without nnU-Net's ``_0000``.
    """
    own = stem(image)
    names = [own + suffix] if folder is None else [own + suffix, own, own.removesuffix("_0000")]
    for name in names:
        for ending in SUFFIXES:
            candidate = (folder or image.parent) / (name + ending)
            if candidate.is_file():
                return candidate
    return None


def output_path(folder: Path, image: Path, ending: str) -> Path:
    """``folder/stem + ending + suffix`` with the suffix that fits the image."""
    suffix, name = ".png", image.name.lower()
    if name.endswith(NRRD_SUFFIXES):
        suffix = ".nrrd"
    elif is_volume(image):
        suffix = ".nii" if name.endswith(".nii") else ".nii.gz"
    return folder / (own_stem(image) + ending + suffix)


def place_below(image: Path, folder: Path) -> Path:
    """Where below ``folder`` an image lies; a series may be the folder itself."""
    return Path() if image == folder else image.parent.relative_to(folder)


def own_stem(image: Path) -> str:
    """What tells an image from the others of its folder: the stem, if need be with the suffix."""
    plain = stem(image)
    for suffix in ("", *SUFFIXES, *_DICOM_SUFFIXES):
        for name in (plain + suffix, plain + suffix.upper()):
            other = image.with_name(name)
            # Some file systems do not tell .png from .PNG.
            if name != image.name and is_image(other) and not other.samefile(image):
                return image.name
    return plain
