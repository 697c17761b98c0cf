"""Structures on real pictures: a pretrained ViT-S, clip art, and emoji by two hands."""
