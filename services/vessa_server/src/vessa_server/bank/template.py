"""A template: its pixels and classes, and what is checked before it is stored."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vessa_client import (
    AnyArray,
    ClassDefinition,
    InvalidRequestError,
    TemplateContent,
    TemplateInfo,
    UInt8Array,
)
from vessa_client._types import Window
from vessa_client.wire import MAX_NAME_LENGTH, check_window, image_digest
from vessa_server.bank.files import to_storable
from vessa_server.bank.index import ID_DIGITS

MAX_DESCRIPTION_LENGTH, MAX_CLASSES = 400, 255
# Control characters, halves of surrogate pairs, line and paragraph separators.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


class Template(TemplateContent):
    """A template with its pixels, as it is in the bank."""

    def mask(self, class_name: str) -> UInt8Array:
        """(H, W), 1 where the class is."""
        value = self.info.class_names.index(class_name) + 1
        mask: UInt8Array = (self.labels == value).astype(np.uint8)
        return mask


@dataclass(frozen=True, kw_only=True)
class TemplateEntry:
    """An annotated image to add.

    Attributes:
        image: (H, W) of any real dtype, or (H, W, 3) uint8.
        labels: (H, W) integers; i is the i-th of ``classes``.
        classes: names and descriptions; those without a labelled pixel are left out of the
            template; their descriptions are kept until a template shows them.
        name: free name, for people.
        window: intensities that become black and white; without it, its own percentiles.
    """

    image: AnyArray
    labels: AnyArray
    classes: Iterable[ClassDefinition]
    name: str = ""
    window: Window | None = None


@dataclass(frozen=True)
class PreparedTemplate:
    """A template that was checked, and the definitions that came with it."""

    template: Template
    definitions: tuple[ClassDefinition, ...]

    @property
    def info(self) -> TemplateInfo:
        """Of the template."""
        return self.template.info


def prepare(entry: TemplateEntry) -> PreparedTemplate:
    """Check an entry, and reduce it to the classes that it shows.

    Raises:
        InvalidRequestError: names the field and what was expected.
    """
    definitions = tuple(entry.classes)
    _check_classes(definitions)
    check_text("name", entry.name, MAX_NAME_LENGTH)
    check_window(entry.window)
    image = to_storable(entry.image)
    labels = _check_labels(image, entry.labels, len(definitions))
    present = [i for i in range(1, len(definitions) + 1) if bool((labels == i).any())]
    if present != list(range(1, len(definitions) + 1)):
        values = np.zeros(len(definitions) + 1, dtype=np.uint8)
        values[present] = np.arange(1, len(present) + 1)
        labels = values[labels]
    class_names = tuple(definitions[i - 1].name for i in present)
    info = TemplateInfo(
        template_id=template_id(content_of(image, labels), class_names, entry.window),
        name=entry.name,
        height=labels.shape[0],
        width=labels.shape[1],
        class_names=class_names,
        window=entry.window,
    )
    return PreparedTemplate(Template(info, image, labels), definitions)


def content_of(image: AnyArray, labels: AnyArray) -> str:
    """Digests of the pixels, the first part of what an id is made of."""
    return "\0".join((image_digest(image), image_digest(labels)))


def template_id(content: str, class_names: tuple[str, ...], window: Window | None = None) -> str:
    """Id of a template: what it shows, and nothing else, decides it."""
    seen = [] if window is None else [f"{window[0]!r} {window[1]!r}"]
    text = "\0".join((*seen, content, *class_names))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def check_text(field: str, text: str, limit: int) -> None:
    """Refuse what is too long or would garble a terminal, a log or a prompt.

    Raises:
        InvalidRequestError: names the field and what was expected.
    """
    if len(text) > limit:
        raise InvalidRequestError(
            f"{field}: {len(text)} characters, expected at most {limit}", field=field
        )
    if any(unicodedata.category(character) in _REFUSED_CATEGORIES for character in text):
        raise InvalidRequestError(
            f"{field}: {text!r}, expected one line without control characters", field=field
        )


def _check_classes(definitions: tuple[ClassDefinition, ...]) -> None:
    names = [c.name for c in definitions]
    if not names or len(set(names)) != len(names) or not all(n.strip() for n in names):
        raise InvalidRequestError(
            f"classes: {names}, expected one or more different, non-empty names", field="classes"
        )
    if len(names) > MAX_CLASSES:
        raise InvalidRequestError(
            f"classes: {len(names)}, expected at most {MAX_CLASSES}", field="classes"
        )
    for definition in definitions:
        check_text("classes.name", definition.name, MAX_NAME_LENGTH)
        check_text("classes.description", definition.description, MAX_DESCRIPTION_LENGTH)


def _check_labels(image: AnyArray, labels: AnyArray, num_classes: int) -> UInt8Array:
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise InvalidRequestError(
            f"label_map: shape {labels.shape} of {labels.dtype}, expected (H, W) integers",
            field="label_map",
        )
    if labels.shape != image.shape[:2]:
        raise InvalidRequestError(
            f"label_map: {labels.shape[0]} x {labels.shape[1]}, expected the image's size, "
            f"{image.shape[0]} x {image.shape[1]}",
            field="label_map",
        )
    if not labels.any():
        raise InvalidRequestError(
            "label_map: no pixel is labelled, expected at least one pixel of a class",
            field="label_map",
        )
    if labels.min() < 0 or labels.max() > num_classes:
        raise InvalidRequestError(
            f"label_map: labels {labels.min()}..{labels.max()}, expected 0..{num_classes}, "
            "one for each of `classes`",
            field="label_map",
        )
    return np.ascontiguousarray(labels, dtype=np.uint8)
