"""Finds genomes: an archive, ways to propose genomes, and functions that score populations.

Knows nothing of training, image files or runs.
"""
