"""Mesh, sharding of a network's variables, multi-process runs, compilation."""
