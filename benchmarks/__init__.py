"""One question, one file: `python -m benchmarks.NAME [--quick]` measures and prints the answer.

What is compared runs in turn and several times, and medians are compared. A table for people comes
first; the very last line is one JSON object with the machine and the ratios, in which a peer that
is not installed is null. `machinery` holds what the questions share, RESULTS.md what was measured.
"""
