"""``/infer/{model}``: the labels of a scan."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from vessa_client import (
    InvalidRequestError,
    Point,
    SegmentationResult,
    UInt8Array,
    VolumeRequest,
    files,
)
from vessa_client.files import ImageFile
from vessa_client.wire import MAX_POINTS
from vessa_server.api.monailabel import information, scans, uploads
from vessa_server.api.monailabel.context import LabelApp, params_of, upload_of
from vessa_server.api.monailabel.uploads import Upload
from vessa_server.api.rest import forms
from vessa_server.api.rest.segment import caller_of, unless_disconnected
from vessa_server.api.rest.volume import summary
from vessa_server.api.room import Share
from vessa_server.api.scans import OpenedScan, open_scan, segment_scan
from vessa_server.scheduler.scheduler import Priority

Output = Annotated[str, Query(pattern="^(|all|image|json|dicom_seg)$")]
MEDIA = {
    ".nii.gz": "application/gzip",
    ".nii": "application/x-nifti",
    ".nrrd": "application/octet-stream",
    ".dcm": "application/dicom",
}
# What interactive models are sent, and this one does not take.
UNKNOWN = ("points", "roi")
MOST_INDEX = 1 << 31


@dataclass(frozen=True)
class Asked:
    """What is wanted of a model.

    Attributes:
        bank: of its templates.
        values: of its labels by name: those that are asked for.
        output: all, image, json or dicom_seg.
        suffix: of the file that goes out.
        packed: whether an NRRD file is.
        clicks: voxels of a class, or of background, as they are stored.
    """

    bank: str
    values: dict[str, int]
    output: str
    suffix: str
    packed: bool
    clicks: tuple[tuple[str, tuple[int, int, int]], ...] = ()

    def request(self, file: ImageFile) -> VolumeRequest:
        """Of all slices of a scan.

        Raises:
            InvalidRequestError: a click is outside of it.
        """
        points: dict[int, tuple[Point, ...]] = {}
        for name, voxel in self.clicks:
            try:
                index, row, column = file.place(voxel)
            except ValueError as error:
                field = "foreground" if name else "background"
                raise InvalidRequestError(
                    f"params.{field}: voxel {list(voxel)}, {error}", field=f"params.{field}"
                ) from error
            point = Point(row=row, column=column, class_name=name)
            points[index] = (*points.get(index, ()), point)
        names = tuple(self.values)
        return VolumeRequest(slices=(), class_names=names, bank=self.bank, points=points)


def infer_router(app: LabelApp) -> APIRouter:
    """The route, around what it shares with others."""
    router = APIRouter(prefix="/infer")

    @router.post("/{model}")
    async def infer(
        request: Request, model: str, image: str = "", session_id: str = "", output: Output = ""
    ) -> Response:
        """Segment a scan of the datastore, of a session, or one that is sent along."""
        caller = caller_of(request, None, Priority.BULK)
        async with forms.read_form(request) as form:
            params = params_of(form)
            if "label" in form.files:
                raise InvalidRequestError("label: expected none of this model", field="label")
            upload = upload_of(form, "file") if "file" in form.files else None
            asked = await app.service.work(lambda: _asked(app, model, params, output))
            with contextlib.ExitStack() as stack:
                path = await app.service.work(
                    lambda: stack.enter_context(_scan(app, image, session_id, upload))
                )

                def opened(share: Share) -> OpenedScan:
                    file = scans.read(path, "image", app.max_bytes)
                    return open_scan(app.service, share, file, asked.request(file))

                async def answer() -> Response:
                    file, results = await segment_scan(app.service, opened, caller)
                    return await app.service.work(partial(_answer, asked, file, results))

                return await unless_disconnected(request, answer())

    return router


@contextlib.contextmanager
def _scan(app: LabelApp, image: str, session_id: str, upload: Upload | None) -> Iterator[Path]:
    """Where the scan is, while its labels are made."""
    if upload is not None:
        with uploads.scratch(Path(tempfile.gettempdir())) as made:
            yield uploads.receive([upload], made, "file", app.max_bytes)
    elif session_id:
        yield app.sessions.get(session_id, touch=True).image
    elif image:
        yield app.store.image(image)
    else:
        raise InvalidRequestError(
            "image: missing, expected an id, a session_id or a file", field="image"
        )


def _asked(app: LabelApp, model: str, params: dict[str, Any], output: str) -> Asked:
    bank = app.bank(model)[0]
    for name in UNKNOWN:
        if params.get(name):
            raise InvalidRequestError(
                f"params.{name}: expected none, {model} takes foreground and background",
                field=f"params.{name}",
            )
    # OHIF shows NRRD; others say what they want, or get what the protocol's own server sends.
    default = ".nrrd" if output == "image" else ".nii.gz"
    suffix = str(params.get("result_extension") or default)
    if suffix not in MEDIA or suffix == ".dcm":
        raise InvalidRequestError(
            f"params.result_extension: {suffix[:20]!r}, expected .nrrd, .nii.gz or .nii",
            field="params.result_extension",
        )
    values = information.label_names(app, model)
    prompt = params.get("label_prompt")
    if prompt:
        known = list(values.values())
        if not isinstance(prompt, list) or not all(value in known for value in prompt):
            raise InvalidRequestError(
                f"params.label_prompt: expected some of {known}",
                field="params.label_prompt",
            )
        values = {name: value for name, value in values.items() if value in prompt}
    packed = params.get("result_compress") is not False
    return Asked(bank, values, output, suffix, packed, _clicks(params, values))


def _clicks(
    params: dict[str, Any], values: Mapping[str, int]
) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    """Voxels of the class ``label``, and of background."""
    found = []
    for field in ("foreground", "background"):
        voxels = params.get(field) or []
        name = params.get("label") if field == "foreground" else ""
        if voxels and field == "foreground" and not (isinstance(name, str) and name in values):
            raise InvalidRequestError(
                f"params.label: {str(name)[:80]!r}, expected one of {', '.join(values)}",
                field="params.label",
            )
        if not isinstance(voxels, list):
            voxels = [voxels]
        if len(voxels) > MAX_POINTS:
            raise InvalidRequestError(
                f"params.{field}: {len(voxels)}, expected {MAX_POINTS} at most",
                field=f"params.{field}",
            )
        for voxel in voxels:
            if not (isinstance(voxel, list) and len(voxel) == 3 and all(map(_is_index, voxel))):
                raise InvalidRequestError(
                    f"params.{field}: expected a list of [i, j, k]", field=f"params.{field}"
                )
            i, j, k = (round(index) for index in voxel)
            found.append((str(name), (i, j, k)))
    return tuple(found)


def _is_index(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < MOST_INDEX


def _answer(asked: Asked, file: ImageFile, results: Sequence[SegmentationResult]) -> Response:
    """In the form that was asked for; labels have the values that ``/info/`` gives them."""
    names = [c.class_name for c in results[0].classes]
    found = summary(file, results)
    for one in found["classes"]:
        one["label"] = asked.values[one["class_name"]]
    params = {"label_names": asked.values, **found}
    if asked.output == "json":
        return JSONResponse(params)
    table = np.array([0, *(asked.values[name] for name in names)], np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / _file_name(file, asked)
        if asked.output == "dicom_seg":
            # Its segments are numbered in the order of their names.
            labels = [result.labels for result in results]
            _write_segmentation(path, labels, file, names, results[0].model_digest)
        else:
            labels = [table[result.labels] for result in results]
            files.write_labels(path, labels, file, packed=asked.packed)
        content = path.read_bytes()
    if asked.output in ("image", "dicom_seg"):
        disposition = f'attachment; filename="{path.name}"'
        return Response(
            content,
            media_type=MEDIA[uploads.ending(path.name)],
            headers={"Content-Disposition": disposition},
        )
    return _multipart(params, path.name, content)


def _file_name(file: ImageFile, asked: Asked) -> str:
    """The scan's, in characters that every header takes."""
    suffix = ".dcm" if asked.output == "dicom_seg" else asked.suffix
    return re.sub(r"[^A-Za-z0-9._-]", "_", file.stem)[:80] + suffix


def _write_segmentation(
    path: Path, labels: list[UInt8Array], file: ImageFile, names: Sequence[str], digest: str
) -> None:
    if not files.is_dicom(file.path):
        raise InvalidRequestError(
            "output: dicom_seg of a scan that is no DICOM series, expected image or all",
            field="output",
        )
    with scans.as_requests(file.path, "image"):
        files.write_segmentation(path, labels, file, names, model=f"VESSA {digest[:12]}")


def _multipart(params: dict[str, Any], name: str, content: bytes) -> Response:
    boundary = secrets.token_hex(16)
    head = (
        f"--{boundary}\r\n"
        'Content-Disposition: form-data; name="params"\r\n'
        "Content-Type: application/json\r\n\r\n"
        f"{json.dumps(params)}\r\n"
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="image"; filename="{name}"\r\n'
        f"Content-Type: {MEDIA[uploads.ending(name)]}\r\n\r\n"
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={boundary}")
