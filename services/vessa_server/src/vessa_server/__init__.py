"""VESSA: reference-guided segmentation of medical images."""
