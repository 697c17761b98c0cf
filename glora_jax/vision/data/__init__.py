"""Images and labels: the tasks, where their images lie, and the way from there to a device.

On its way an image passes `catalog`, which finds the task by its name; `folders`, `label_files` or
`tfds`, which lists the images; `splits`, which makes the splits that are missing, of `examples`
that together are a `task`; `opening`, which says which images there are and whether all can be
decoded; and `pipeline`, which decodes them by `image`, once or in every epoch. On the device they
are augmented (`augment`) and normalized (`normalization`). Knows nothing of models.
"""
