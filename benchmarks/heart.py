"""The structures of ACDC's hearts, as banks and requests of the benchmarks name them."""

from __future__ import annotations

from vessa_client import ClassDefinition

CLASSES = (
    ClassDefinition(
        name="right ventricle", description="Cavity of the heart that leans on the muscle ring."
    ),
    ClassDefinition(name="myocardium", description="Muscle ring around the left cavity."),
    ClassDefinition(name="left ventricle", description="Cavity inside the muscle ring."),
)
NAMES = tuple(c.name for c in CLASSES)
