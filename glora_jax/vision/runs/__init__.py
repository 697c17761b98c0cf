"""Everything with a config and a workdir: runs, comparisons, suites.

Knows all other rooms; only the commands know it.
"""
