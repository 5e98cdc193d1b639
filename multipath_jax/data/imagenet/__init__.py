"""Preparation of ILSVRC2012: its published files are read, rescaled and written for TFDS."""
