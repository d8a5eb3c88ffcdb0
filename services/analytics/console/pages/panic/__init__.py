"""Panic and re-arm: plain forms."""
