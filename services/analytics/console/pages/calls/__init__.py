"""Calls: what exactly was sent, and what came back?"""
