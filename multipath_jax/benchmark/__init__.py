"""The benchmark: ``python -m multipath_jax.benchmark``.

Every figure is a median over rounds. In each round all contestants of a comparison run one after
another, so that other load on the machine affects all of them. Ratios are computed within each
round and reported as their median and quartiles.
"""
