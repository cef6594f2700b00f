"""Discrepancy of features, gradients of it, and the localization maps made of them."""
