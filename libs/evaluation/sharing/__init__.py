"""Evaluations in Postgres: their results, and their work while it is spread over workers."""
