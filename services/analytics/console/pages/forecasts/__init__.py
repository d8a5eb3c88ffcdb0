"""Forecasts: were they any good?"""
