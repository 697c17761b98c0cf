"""Linear layers found by use: what a function's program does with its parameters.

It knows where layers are, and nothing of adapters and structures. `find.py` is the way in. It reads
what `walk.py` has recorded (`events.py`) of a program, whose primitives (`primitives.py`) move the
axes of parameters (`view.py`).
"""
