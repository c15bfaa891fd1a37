"""UniMatch V2 (arXiv 2410.10777), with and without the pseudo-labels of VESSA."""
