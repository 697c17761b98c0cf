"""What input costs: images that are streamed, and a million of them."""
