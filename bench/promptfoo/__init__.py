"""promptfoo beside the evaluation of this project: the same cases, the same loopback model."""
