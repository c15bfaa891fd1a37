"""The training loop: batches, updates, validation, state on disk."""
