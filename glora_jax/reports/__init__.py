"""Results as Markdown, CSV and pictures.

Starts nothing and trains nothing: it reads what a run has found.
"""
