"""VESSA without one of its parts, masked at inference, or without rules of its engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vessa_server.engine_settings import EngineSettings
from vessa_server.matching.template_matcher import NOT_A_POINT, MatchPrompts, foreground_prototype
from vessa_server.model.vessa import ImageFeatures, Reasoned, TemplateFeatures, Vessa
from vessa_server.policy import RULES as POLICY_RULES
from vessa_server.policy import PolicyConfig

# What the engine does beside the paper's five steps: rules that are switched off, by name.
RULES: dict[str, tuple[str, ...]] = {
    "all rules": (),
    **{f"no {name}": (name,) for name in POLICY_RULES},
    "five steps": tuple(POLICY_RULES),
}


def settings(rules: str) -> EngineSettings:
    """An engine without the rules that ``rules`` leaves out."""
    return EngineSettings(policy=PolicyConfig(off=frozenset(RULES[rules])))


# Similarity of a cell to the prototype, relative to the image's range, that counts as one half.
PROTOTYPE_SHARPNESS = 12.0


@contextmanager
def without(model: Vessa, part: str) -> Iterator[None]:
    """Switch off ``matching``, ``vlm``, ``memory``, or all but a ``prototype``'s similarity."""
    replaced: dict[str, Any] = {}

    def replace(name: str, function: Any) -> None:
        replaced[name] = None
        setattr(model, name, function)

    def no_match(
        features: ImageFeatures, image_P: Tensor, templates: TemplateFeatures
    ) -> MatchPrompts:
        found = Vessa.match(model, features, image_P, templates)
        share = templates.mask_K1HW.mean(dim=(1, 2, 3)).unflatten(0, (len(image_P), -1)).mean(1)
        flat = share[:, None, None, None].expand_as(found.prior_P1HW)
        return MatchPrompts(flat, found.points_PN2, torch.full_like(found.labels_PN, NOT_A_POINT))

    def prototype(
        features: ImageFeatures, image_P: Tensor, templates: TemplateFeatures
    ) -> MatchPrompts:
        pairs = len(image_P)
        prototype_PD = (
            foreground_prototype(templates.match_KDHW, templates.mask_K1HW)
            .unflatten(0, (pairs, -1))
            .mean(dim=1)
        )
        cells = torch.einsum("pdhw,pd->phw", features.match_BDHW[image_P], prototype_PD)[:, None]
        low, high = cells.amin(dim=(2, 3), keepdim=True), cells.amax(dim=(2, 3), keepdim=True)
        relative = (cells - low) / (high - low).clamp(min=1e-6)
        return model.matcher.prompts(torch.sigmoid(PROTOTYPE_SHARPNESS * (relative - 0.7)))

    def no_memory(features: ImageFeatures, image_P: Tensor, templates: TemplateFeatures) -> Tensor:
        return features.top_BDHW[image_P]

    def no_vlm(*arguments: Any, **options: Any) -> Reasoned:
        found = Vessa.reason(model, *arguments, **options)
        return Reasoned(
            torch.zeros_like(found.seg_P1D), torch.zeros_like(found.seg_map_P1HW), found.loss
        )

    if part == "matching":
        replace("match", no_match)
    if part == "prototype":
        replace("match", prototype)
    if part in ("memory", "prototype"):
        replace("remember", no_memory)
    if part in ("vlm", "prototype"):
        replace("reason", no_vlm)
    if not replaced:
        raise ValueError(f"part {part!r}: expected matching, vlm, memory or prototype")
    try:
        yield
    finally:
        for name in replaced:
            delattr(model, name)
