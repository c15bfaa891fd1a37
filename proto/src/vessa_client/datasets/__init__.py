"""Annotated images and pseudo-labels as data sets of other programs: nnU-Net, MONAI, COCO."""
