"""Names and layouts of a Vision Transformer's tensors in each code base, one module for a family.

Nothing here depends on files: inputs and outputs are shapes, arrays and the contents of JSON.
"""
