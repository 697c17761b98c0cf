"""Images and labels: the tasks, where their images lie, and the way from there to a device.

Knows nothing of models.
"""
