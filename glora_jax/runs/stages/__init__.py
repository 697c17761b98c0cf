"""The stages of a run; each leaves its result in the workdir, and is skipped where it finds it."""
