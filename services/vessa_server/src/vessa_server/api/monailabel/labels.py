"""Labels that come in: checked against their scan, kept, and made into templates."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vessa_client import (
    ClassDefinition,
    InvalidRequestError,
    TemplateInfo,
    annotated,
    files,
)
from vessa_client.annotated import LabelScheme
from vessa_client.files import ImageFile
from vessa_client.windows import AUTOMATIC
from vessa_server.api import corrections
from vessa_server.api.monailabel import scans, uploads
from vessa_server.api.monailabel.context import MODEL, LabelApp
from vessa_server.api.monailabel.datastore import FINAL
from vessa_server.api.monailabel.uploads import Upload
from vessa_server.bank import TemplateEntry
from vessa_server.cases.images import check_template

# Voxels without a header, in the order of the scan's: OHIF's.
RAW = ".bin"
# As many as `vessa templates add` takes of a volume.
MAX_SLICES = 32
# What the server notes of a final label: bank and ids of its templates.
RECORD = "vessa"


async def put(
    app: LabelApp, image: str, tag: str, upload: Upload, params: dict[str, Any]
) -> dict[str, Any]:
    """Keep a label map; a final one makes templates of its slices, in place of earlier ones.

    Returns:
        Ids of image and label, which are the same, and how many templates were made.

    Raises:
        NotFoundError: unknown image or model.
        InvalidRequestError: damaged, lies elsewhere than the scan, or has a value without a name.
        DiskFullError: no space is left; label and templates are as they were.
    """
    bank = app.bank(str(params.get("model") or MODEL))[0]
    uploads.check_name("tag", tag)

    def change() -> tuple[str, list[TemplateInfo]]:
        name, path = app.store.named(image)
        with uploads.scratch(app.store.folder) as made:
            received = _received(app, path, upload, made)
            for file, field in ((path, "image"), (received, "label")):
                scans.check(file, field, app.max_bytes)
            with scans.as_requests(received, "label"):
                source, annotation = annotated.read_pair(path, received)
            if tag != FINAL:
                app.store.put_label(name, tag, received, params)
                return name, []
            templates = app.service.engine.banks.get(bank).snapshot().templates
            source = AUTOMATIC.of(source, templates)
            entries = _entries(app, source, annotation, params)
            return name, _replace(app, name, received, bank, entries, params)

    name, created = await app.change(change)
    app.service.encode_soon(created, bank)
    return {"image": name, "label": name, "templates": len(created)}


def forget_templates(app: LabelApp, name: str) -> None:
    """Delete the templates that the final label of a scan made."""
    _delete(app, app.store.info(name, FINAL).get(RECORD, {}), keep=())


def _replace(
    app: LabelApp,
    name: str,
    label: Path,
    bank: str,
    entries: Sequence[TemplateEntry],
    params: dict[str, Any],
) -> list[TemplateInfo]:
    """Put label and templates in place of earlier ones; what fails leaves those."""
    before = app.store.info(name, FINAL).get(RECORD, {})
    own = set(before.get("templates", ())) if before.get("bank") == bank else set()
    results: tuple[tuple[TemplateInfo, bool], ...] = ()
    if entries:
        results = app.service.engine.banks.get(bank, create=True).add_many(entries)
    created = [info for info, new in results if new]
    # What somebody else added is not the label's.
    ids = [info.template_id for info, new in results if new or info.template_id in own]
    record = {"bank": bank, "templates": ids}
    try:
        app.store.put_label(name, FINAL, label, {**params, RECORD: record})
    except BaseException:
        _delete(app, {"bank": bank, "templates": [t.template_id for t in created]}, keep=())
        raise
    _delete(app, before, keep=ids if before.get("bank") == bank else ())
    return created


def _delete(app: LabelApp, record: dict[str, Any], keep: Sequence[str]) -> None:
    gone = [t for t in record.get("templates", ()) if t not in keep]
    corrections.remove(app.service.engine.banks, record.get("bank", ""), gone)


def _entries(
    app: LabelApp,
    source: ImageFile,
    annotation: ImageFile,
    params: dict[str, Any],
) -> list[TemplateEntry]:
    """The annotated slices as templates; none where nothing is labelled."""
    values = [int(value) for value in np.unique(annotation.pixels) if value]
    if not values:
        return []
    scheme = _scheme(params, values)
    engine = app.service.engine
    if len(values) > engine.settings.max_classes:
        raise InvalidRequestError(
            f"label: {len(values)} labels, expected at most {engine.settings.max_classes}",
            field="label",
        )
    entries = []
    for cut in annotated.cut(source, annotation, scheme, MAX_SLICES):
        stored = engine.images.resolve(cut.image)
        check_template(stored.pixels)
        entries.append(
            TemplateEntry(
                image=stored.pixels,
                labels=cut.labels,
                classes=scheme.classes,
                name=cut.name,
                window=cut.window,
            )
        )
    return entries


def _scheme(params: dict[str, Any], values: Sequence[int]) -> LabelScheme:
    """Names of the label's values, by ``params.label_info``."""
    named: dict[int, str] = {}
    given = params.get("label_info")
    for entry in given if isinstance(given, list) else []:
        with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
            named[int(entry["idx"])] = entry["name"].strip()
    missing = [value for value in values if not named.get(value)]
    if missing == [annotated.MASK_VALUE] == values and set(named) - {0} == {1}:
        return LabelScheme((ClassDefinition(name=named[1]),), (1,))
    if missing:
        raise InvalidRequestError(
            f"params.label_info: no name for the label's value {', '.join(map(str, missing))}, "
            'expected [{"name": NAME, "idx": VALUE}, ...]',
            field="params.label_info",
        )
    classes = tuple(ClassDefinition(name=named[value]) for value in values)
    return LabelScheme(classes, tuple(values))


def _received(app: LabelApp, image: Path, upload: Upload, made: Path) -> Path:
    """The label as a file; one without a header gets the scan's."""
    if not upload.name.lower().endswith(RAW):
        inside = made / "files"
        inside.mkdir()
        received = uploads.receive([upload], inside, "label", app.max_bytes)
        if not uploads.ending(received.name).endswith((*files.NIFTI_SUFFIXES, ".nrrd")):
            raise InvalidRequestError(
                f"label: {upload.name[-80:]!r}, expected .nii, .nii.gz, .nrrd or .bin",
                field="label",
            )
        return received
    stored = scans.read(image, "image", app.max_bytes).stored
    assert stored is not None
    count = int(np.prod(stored.shape))
    content = upload.content.read(count + 1)
    if len(content) != count:
        more = "more than " if len(content) > count else ""
        raise InvalidRequestError(
            f"label: {more}{min(len(content), count)} bytes, expected one for each of the scan's "
            f"{' x '.join(map(str, stored.shape))} voxels",
            field="label",
        )
    voxels = np.frombuffer(content, np.uint8).reshape(stored.shape, order="F")
    path = made / f"label{files.NIFTI_SUFFIXES[0]}"
    files.write_volume(path, voxels, stored.affine)
    return path
