"""Devices and processes: the mesh, where a network's variables lie on it, compilation."""
