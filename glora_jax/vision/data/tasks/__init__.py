"""One file for each family of tasks; `glora_jax.vision.data.catalog` finds a task by its name."""
