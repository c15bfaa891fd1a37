"""The protocol of MONAI Label under ``/monai/``, for 3D Slicer, OHIF and other clients of it."""
