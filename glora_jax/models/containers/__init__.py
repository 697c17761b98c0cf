"""Files of named tensors: npz, safetensors, PyTorch. Nothing in a file is ever executed.

Knows nothing of models.
"""
