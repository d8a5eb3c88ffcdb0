"""What is evaluated: cases, the files they come in, and their masked and hostile twins."""
