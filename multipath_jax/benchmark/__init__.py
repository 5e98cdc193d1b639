"""How fast it is, and against what: ``python -m multipath_jax.benchmark``.

Every figure is a median over rounds in which all contestants of a comparison take turns, so that
whatever else the machine does meets them alike. Ratios come first, each the median of the ratios
within the rounds, with their quartiles as the spread.
"""
