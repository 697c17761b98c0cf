"""Structures against one another at equal size, in four studies whose results are kept."""
