"""Features: what the source computes for images, in batches, cached or stored."""
