"""The paper's five steps for batches of looks, each at one image."""
