"""Asking again what was asked before: one call, a whole period, or every recorded answer through today's code.

A replay never changes a forecast, an experiment's counts or the replies kept for live calls.
"""
