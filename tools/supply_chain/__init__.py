"""What we take from others: pinned, known, licensed, and free of surprises. `make audit` runs all of it."""
