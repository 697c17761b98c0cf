"""What the code does today, written down, and held against what it does later."""
