"""What a sceptic asks of a finished run: four questions, a file for each; `report` joins them."""
