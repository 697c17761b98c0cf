"""Everything with a config and a workdir: runs, and suites of them.

Knows all other rooms; only the commands know it.
"""
