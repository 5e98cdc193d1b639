"""Errors of a network on a split: single crops, ten crops, mirror images."""
