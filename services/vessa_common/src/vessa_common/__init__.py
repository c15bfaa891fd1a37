"""What the VESSA server and the trainer do the same way: processes, precision, data sets."""
