"""The vision transformer, and everybody's checkpoints of it.

Knows nothing of training, search or runs.
"""
