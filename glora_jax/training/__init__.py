"""A loss minimized, with states that can be gone on from: one run, or many side by side.

Knows nothing of image files or runs, and nothing of the search.
"""
