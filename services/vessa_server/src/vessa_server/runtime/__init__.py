"""The model on a device: the only place with tensors of it."""
