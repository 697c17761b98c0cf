"""Structures against one another at equal size, on tasks for development and on final ones."""
