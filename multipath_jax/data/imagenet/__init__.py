"""ILSVRC2012 from its published files: read, labelled, rescaled and written as a TFDS data set."""
