"""The training loop: the compiled step, its state, and what is measured and written on the way."""
