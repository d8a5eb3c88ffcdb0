"""Real vLLM on the CPU with a small real model, for machines without GPUs."""
