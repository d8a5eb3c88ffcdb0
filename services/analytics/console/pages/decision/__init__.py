"""One decision, whole, and asking again."""
