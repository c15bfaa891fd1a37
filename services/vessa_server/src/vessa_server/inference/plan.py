"""What a request asks for, checked against the bank and the limits."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from vessa_client import (
    BankListing,
    ClassDefinition,
    InvalidRequestError,
    NotFoundError,
    SegmentationRequest,
    TemplateInfo,
)
from vessa_server.bank import TemplateBank
from vessa_server.features.lru import ByteLru
from vessa_server.policy import PolicyConfig

MAX_TEXT_LENGTH = 400
# Candidates of recent requests by the version of the bank, which is a digest of its content: a
# large bank is not searched again for each request.
_known: ByteLru[tuple[tuple[ClassDefinition, ...], tuple[TemplateInfo, ...]]] = ByteLru(64)


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    default_top_k: int
    max_top_k: int
    max_classes: int


@dataclass(frozen=True)
class Plan:
    """Classes to segment and the templates that may serve; each class is shown by some.

    Attributes:
        bank: that holds the templates.
        bank_version: when the plan was made.
        policy: the rules that apply.
    """

    classes: tuple[ClassDefinition, ...]
    candidates: tuple[TemplateInfo, ...] = field(repr=False)
    top_k: int
    text: str
    bank: TemplateBank = field(repr=False)
    bank_version: str
    template_ids: tuple[str, ...]
    policy: PolicyConfig

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return tuple(definition.name for definition in self.classes)

    @property
    def index_key(self) -> Hashable:
        """Which templates and classes are compared."""
        return str(self.bank.folder), self.bank_version, self.names, self.template_ids

    @property
    def condition_key(self) -> Hashable:
        """All that steps 1 to 4 depend on, besides the image."""
        return self.index_key, self.classes, self.top_k, self.text

    @property
    def key(self) -> Hashable:
        """All that an answer depends on, besides image, volume and student's mask."""
        return self.condition_key, self.policy.off


def make_plan(
    request: SegmentationRequest, bank: TemplateBank, policy: PolicyConfig, limits: Limits
) -> Plan:
    """Check classes, templates and options of a request.

    Raises:
        NotFoundError: a class or a template is not in the bank.
        InvalidRequestError: the bank is empty, or an option is out of range.
    """
    listing = bank.snapshot()
    if not listing.templates:
        raise InvalidRequestError(
            f"bank: {request.bank or 'the default one'} has no templates; choose another, or add "
            "some (vessa templates add)",
            field="bank",
        )
    if not 0 <= request.top_k <= limits.max_top_k:
        raise InvalidRequestError(
            f"options.top_k: {request.top_k}, expected 1..{limits.max_top_k}, or 0 for the default",
            field="options.top_k",
        )
    if len(request.text) > MAX_TEXT_LENGTH:
        raise InvalidRequestError(
            f"text: {len(request.text)} characters, expected at most {MAX_TEXT_LENGTH}",
            field="text",
        )
    if len(request.class_names) > limits.max_classes:
        raise _too_many(len(request.class_names), limits)
    if len(request.template_ids) > len(listing.templates):
        raise InvalidRequestError(
            f"options.template_ids: {len(request.template_ids)}, expected at most the bank's "
            f"{len(listing.templates)}",
            field="options.template_ids",
        )
    key = (listing.version, request.class_names, request.template_ids)
    found = _known.get(key)
    if found is None:
        found = _candidates(request, listing)
        _known.put(key, found, 1)
    classes, candidates = found
    if len(classes) > limits.max_classes:
        raise _too_many(len(classes), limits)
    return Plan(
        classes=classes,
        candidates=candidates,
        top_k=request.top_k or limits.default_top_k,
        text=request.text,
        bank=bank,
        bank_version=listing.version,
        template_ids=request.template_ids,
        policy=policy,
    )


def _candidates(
    request: SegmentationRequest, listing: BankListing
) -> tuple[tuple[ClassDefinition, ...], tuple[TemplateInfo, ...]]:
    """The asked classes, and the templates that show some of them."""
    classes = _asked_classes(request.class_names, listing)
    allowed = _allowed_templates(request.template_ids, listing)
    shown = {name for template in allowed for name in template.class_names}
    for definition in classes:
        if definition.name not in shown:
            raise NotFoundError(
                f"options.template_ids: none of the templates shows {definition.name!r}",
                field="options.template_ids",
            )
    asked = {definition.name for definition in classes}
    return classes, tuple(t for t in allowed if asked.intersection(t.class_names))


def _too_many(count: int, limits: Limits) -> InvalidRequestError:
    return InvalidRequestError(
        f"class_names: {count} classes, expected at most {limits.max_classes}",
        field="class_names",
    )


def _asked_classes(names: tuple[str, ...], bank: BankListing) -> tuple[ClassDefinition, ...]:
    shown = {name for template in bank.templates for name in template.class_names}
    known = {c.name: c for c in bank.classes if c.name in shown}
    for name in names:
        if name not in known:
            raise NotFoundError(
                f"class_names: no class {_shortened(name)!r} in the bank, expected one of "
                f"{_listed(list(known))}",
                field="class_names",
            )
    if len(set(names)) != len(names):
        raise InvalidRequestError(
            f"class_names: {_listed(list(names))}, expected each class once", field="class_names"
        )
    return tuple(known[name] for name in names) or tuple(known.values())


def _allowed_templates(ids: tuple[str, ...], bank: BankListing) -> tuple[TemplateInfo, ...]:
    if not ids:
        return bank.templates
    by_id = {t.template_id: t for t in bank.templates}
    for template_id in ids:
        if template_id not in by_id:
            raise NotFoundError(
                f"options.template_ids: no template {_shortened(template_id)!r} in the bank",
                field="options.template_ids",
            )
    return tuple(by_id[template_id] for template_id in ids)


def _shortened(text: str, most: int = 80) -> str:
    """What a request says, as far as an error repeats it."""
    return text if len(text) <= most else text[:most] + "..."


def _listed(names: list[str], most: int = 12) -> str:
    """Names for an error, not too many of them."""
    more = "" if len(names) <= most else f" and {len(names) - most} more"
    return ", ".join(_shortened(name) for name in names[:most]) + more
