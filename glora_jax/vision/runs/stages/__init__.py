"""The stages of a run. Each leaves its result in the workdir, and is skipped if it is there."""
