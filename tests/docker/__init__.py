"""Proofs on a real Docker engine, at DOCKER_HOST or its usual socket. They need the image python:3.12-slim."""
