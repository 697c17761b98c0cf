"""Images and labels: the tasks, where their images lie, and the way from there to a device.

`catalog` finds a `task` by its name. `folders`, `label_files` and `tfds` list its images as
`examples`, and `splits` makes the splits that are missing. `opening` finds the images that cannot
be decoded, and `pipeline` decodes the others with `image`, once or in every epoch. On the device
they are augmented (`augment`) and normalized (`normalization`). Knows nothing of models.
"""
