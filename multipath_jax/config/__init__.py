"""Config keys, the schedule that they describe, and the command-line flags that set them."""
