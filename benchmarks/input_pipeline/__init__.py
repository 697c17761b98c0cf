"""What input costs: images that stay on the device, images that are streamed, a million of them."""
