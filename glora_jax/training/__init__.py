"""Minimizes a loss, with states to resume from: one run, or many side by side.

Knows nothing of image files, runs or the search.
"""
