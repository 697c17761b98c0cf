"""Structures on real texts: a pretrained sentence encoder, and people's ratings of sentences."""
