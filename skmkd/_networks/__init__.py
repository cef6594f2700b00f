"""Networks: traced, tapped and built."""
