"""Asking: the plan of a run, one item at a time, and rows on disk before the next is asked."""
