"""What a run will take, known before it begins: `plan`, and what it counts and estimates with."""
