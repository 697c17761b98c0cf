"""Results as pages and CSV.

Starts nothing and trains nothing: it reads what a run has found.
"""
