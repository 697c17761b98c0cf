"""GLoRA on one model: its linear layers, their adapters, genomes, merging and folding.

Knows nothing of images, training or runs.
"""
