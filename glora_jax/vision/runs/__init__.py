"""Everything with a config and a workdir: runs, and suites of them.

It may import all other parts of the package; only the commands import it.
"""
