"""The application: images, backbones of vision, and runs from a config to a page.

The library, all else in `glora_jax`, imports nothing from here.
"""
