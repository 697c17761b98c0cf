"""A genome found: an archive, ways to propose, and functions that score whole populations.

Knows nothing of training, image files or runs.
"""
