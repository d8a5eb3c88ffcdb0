"""Prompts and experiments: which runs, and on whose word?"""
