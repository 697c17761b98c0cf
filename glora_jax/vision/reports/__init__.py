"""Results as pages and CSV.

Starts nothing and trains nothing: it reads the results of a run.
"""
