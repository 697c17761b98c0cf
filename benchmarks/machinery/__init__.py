"""What benchmarks share: clocks, output, the embedded task, training steps, peers, processes."""
