"""The stages of one run; each leaves its result in the workdir, and is skipped where that is there."""
