"""The programs of a run, compiled by the TPU compiler for slices that are not at hand."""
