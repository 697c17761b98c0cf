"""How each code base names and lays out the tensors of a Vision Transformer, a file a family.

Knows nothing of files: shapes, arrays and the contents of JSON come in and go out.
"""
