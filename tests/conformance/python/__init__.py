"""The official client for Python."""
