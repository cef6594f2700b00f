"""Networks: sources, cloners and their layers."""
