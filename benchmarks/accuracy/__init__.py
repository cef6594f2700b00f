"""How accurate is it? Protocols as small files, one command each, every figure from its JSON."""
