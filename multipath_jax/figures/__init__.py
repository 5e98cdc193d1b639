"""Section 7 of the paper for any trained network: what its routers do, computed and drawn.

Every figure is computed first (arrays of NumPy in plain dataclasses) and drawn from that alone.
"""
