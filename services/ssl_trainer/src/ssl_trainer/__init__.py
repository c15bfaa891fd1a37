"""Semi-supervised training with VESSA as assistant."""
