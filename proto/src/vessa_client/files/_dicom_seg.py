"""Labels of a DICOM series as a DICOM segmentation object, which names its source images."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from vessa_client._types import UInt8Array
from vessa_client.files import _dicom
from vessa_client.files._errors import FileError
from vessa_client.files._image import ImageFile
from vessa_client.files._volumes import to_nifti

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

# SNOMED CT's category of all segments; a class without a code there has one of our own scheme.
CATEGORY = ("123037004", "SCT", "Anatomical Structure")
SCHEME = "99VESSA"


def save(
    path: Path,
    labels: Sequence[UInt8Array],
    like: ImageFile,
    classes: Sequence[str],
    *,
    model: str,
    corrected: bool = False,
) -> None:
    """Write label maps of a series' slices, in the order of ``like``.

    Args:
        path: file to write.
        labels: one label map for each slice.
        like: the series that was labelled.
        classes: names of the labels 1, 2, ...
        model: who made them.
        corrected: a person has changed them.

    Raises:
        FileError: the series is gone, or lacks what a segmentation object refers to.
    """
    try:
        from highdicom import UID, AlgorithmIdentificationSequence
        from highdicom.seg import Segmentation, SegmentDescription
    except ImportError as error:
        raise FileError(
            "no DICOM segmentation is written without highdicom: `pip install "
            "'vessa-client[dicom-seg]'`; the NIfTI file is there"
        ) from error
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    version = importlib.metadata.version("vessa-client")
    frames = _dicom.series(like.path, like.frame)
    stored = np.asarray(to_nifti(list(labels), like).dataobj)
    planes = stored if frames[0].position is None else stored.transpose(2, 1, 0)
    sources = {id(frame.dataset): frame.dataset for frame in frames}
    if len(sources) == 1:  # in the order of its frames
        planes = planes[np.argsort([frame.index for frame in frames])]
    algorithm = AlgorithmIdentificationSequence(
        name=model, version=version, family=codes.DCM.ArtificialIntelligence
    )
    described = [
        SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=Code(*CATEGORY),
            segmented_property_type=code(name),
            algorithm_type="SEMIAUTOMATIC" if corrected else "AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=UID(),
            tracking_id=name[:64],
        )
        for number, name in enumerate(classes, start=1)
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names of patients, which stay as they are
            made = Segmentation(
                source_images=list(sources.values()),
                pixel_array=np.ascontiguousarray(planes),
                segmentation_type="BINARY",
                segment_descriptions=described,
                series_instance_uid=UID(),
                series_number=900,
                sop_instance_uid=UID(),
                instance_number=1,
                manufacturer="VESSA",
                manufacturer_model_name=model,
                software_versions=version,
                device_serial_number="0",
                content_label="PSEUDO_LABELS",
                series_description="VESSA pseudo-labels (research)",
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{like.path}: no DICOM segmentation can refer to it ({error})") from error
    made.save_as(path)


def code(name: str) -> Code:
    """SNOMED CT's code of a class, where DICOM's dictionary has one of that name."""
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    keyword = "".join(word.capitalize() for word in re.findall(r"[A-Za-z]+", name))
    try:
        return cast("Code", getattr(codes.SCT, keyword))
    except AttributeError:
        digest = hashlib.sha256(name.encode()).hexdigest()
        return Code(digest[:16].upper(), SCHEME, name[:64])
