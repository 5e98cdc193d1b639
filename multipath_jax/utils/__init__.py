"""Helpers that know nothing of networks: files, the command line, lines that report progress."""
