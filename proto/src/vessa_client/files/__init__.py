"""Image and label files of users, with their geometry kept.

Pictures, NIfTI, NRRD and DICOM are read by one reader each (``_reading.READERS``); volumes come in
one orientation, and labels go back as their image lies.
"""

from vessa_client.files._dicom_files import is_dicom
from vessa_client.files._errors import FileError, reading
from vessa_client.files._image import ImageFile, sample, slice_axis, spread
from vessa_client.files._labels import integers
from vessa_client.files._names import (
    LABEL_SUFFIX,
    NIFTI_SUFFIXES,
    PICTURE_SUFFIXES,
    SUFFIXES,
    find_images,
    find_inputs,
    find_label,
    is_image,
    is_volume,
    output_path,
    own_stem,
    place_below,
    stem,
)
from vessa_client.files._reading import acquired_axis, modality, read
from vessa_client.files._volumes import from_nifti, to_nifti
from vessa_client.files._writing import (
    check_writable,
    new_folder,
    write_bytes,
    write_image,
    write_labels,
    write_picture,
    write_segmentation,
    write_text,
    write_volume,
)

__all__ = [
    "LABEL_SUFFIX",
    "NIFTI_SUFFIXES",
    "PICTURE_SUFFIXES",
    "SUFFIXES",
    "FileError",
    "ImageFile",
    "acquired_axis",
    "check_writable",
    "find_images",
    "find_inputs",
    "find_label",
    "from_nifti",
    "integers",
    "is_dicom",
    "is_image",
    "is_volume",
    "modality",
    "new_folder",
    "output_path",
    "own_stem",
    "place_below",
    "read",
    "reading",
    "sample",
    "slice_axis",
    "spread",
    "stem",
    "to_nifti",
    "write_bytes",
    "write_image",
    "write_labels",
    "write_picture",
    "write_segmentation",
    "write_text",
    "write_volume",
]
