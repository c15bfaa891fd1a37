"""VESSA as assistant."""
