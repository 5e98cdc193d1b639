"""The figures of Section 7, and others, for any trained network.

Every figure is computed first, as NumPy arrays in dataclasses, and then drawn from these.
"""
