"""Stage 1 training."""
