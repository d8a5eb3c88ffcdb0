"""The panic exit: halt, cancel all, close all, and say what is true. Standard library and httpx only."""
