"""Answers as files: PNG, NIfTI, JSON. Axes: H W space."""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import asdict
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from vessa_client import SegmentationResult, UInt8Array, pictures
from vessa_server.cases.nifti import NiftiGeometry


def png(array: UInt8Array, *, palette: bool = False) -> bytes:
    """PNG bytes; with ``palette`` the values are labels and look like their colours."""
    picture = Image.fromarray(array)
    if palette:
        picture = Image.fromarray(array, mode="P")
        picture.putpalette(pictures.colour(np.arange(256, dtype=np.uint8)).tobytes())
    # Run lengths suit labels and smooth maps; the default takes four times as long.
    strategy = zlib.Z_RLE if array.ndim == 2 else zlib.Z_DEFAULT_STRATEGY
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=1, compress_type=strategy)
    return stream.getvalue()


def nifti(labels: UInt8Array, geometry: NiftiGeometry | None) -> bytes:
    """NIfTI bytes with the affine, shape and units of the image; identity without one."""
    if geometry is None:
        return bytes(nib.Nifti1Image(labels[..., None], np.eye(4)).to_bytes())
    header = geometry.header.copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    image = nib.Nifti1Image(labels.reshape(geometry.shape), geometry.affine, header)
    return bytes(image.to_bytes())


def as_json(result: SegmentationResult) -> dict[str, Any]:
    """The result as JSON; arrays are PNG files in base64."""
    return {
        "request_id": result.request_id,
        "height": result.labels.shape[0],
        "width": result.labels.shape[1],
        "classes": [
            {
                "label": label,
                "class_name": c.class_name,
                "predicted_iou": c.predicted_iou,
                "pixels": int((result.labels == label).sum()),
                "explanation": c.explanation,
            }
            for label, c in enumerate(result.classes, start=1)
        ],
        "templates": [
            {
                "template_id": t.template_id,
                "class_name": t.class_name,
                "similarity": t.similarity,
            }
            for t in result.templates
        ],
        "labels_png": base64.b64encode(png(result.labels, palette=True)).decode(),
        "confidence_png": base64.b64encode(png(result.confidence)).decode(),
        "stage_ms": result.stage_ms,
        "model_digest": result.model_digest,
        "bank_version": result.bank_version,
        "cache": {
            "image_features": "hit" if result.image_features_cached else "miss",
            "template_features": "hit" if result.template_features_cached else "miss",
        },
        "image_ref": result.image_sha256,
        "region": None if result.region is None else asdict(result.region),
    }
