"""Evaluations: did a version pass before it ran?"""
