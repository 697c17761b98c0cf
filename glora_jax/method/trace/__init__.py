"""Finds linear layers by their use: how a function's program uses its parameters.

It knows the layers, but not adapters and structures. `find.py` is the way in. It reads what
`walk.py` has recorded (`events.py`) of a program, whose primitives (`primitives.py`) move the axes
of parameters (`view.py`).
"""
