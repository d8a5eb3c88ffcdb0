"""What figures can be trusted to say: estimates with intervals. Pure functions on counts and sums."""
