"""Images and labels: the tasks, the places of their images, and the way from there to a device.

`catalog` finds a `task` by its name. `own`, `label_files` and `tfds` list its images, and `splits`
makes the splits that are missing. `pipeline` reads every image once, compares all with the `record`
of an earlier start, and decodes them with `image`, once or in every epoch. On the device they are
augmented (`augment`) and normalized (`normalization`). Nothing here depends on models.
"""
