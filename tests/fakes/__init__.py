"""Servers that stand for parties outside the house, spoken to over real sockets."""
