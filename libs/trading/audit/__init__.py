"""Proof of what the gate said: checking the chain of verdicts, and handing it out."""
