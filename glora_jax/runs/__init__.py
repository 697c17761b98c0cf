"""Everything with a config and a workdir: runs, comparisons, suites, pretraining.

Knows all other rooms; only the commands know it.
"""
