"""Maps: discrepancies, attributions and what finishes them."""
