"""The vision transformer, and checkpoints of it in many formats.

Nothing here depends on training, search or runs.
"""
