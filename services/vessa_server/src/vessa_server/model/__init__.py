"""The model: the five steps of Stage 1."""
