"""Linear layers found by use: what a function's program does with its parameters.

Knows where layers lie, and nothing of what is done with them: no supports, no genomes.
"""
