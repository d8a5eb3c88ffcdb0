"""Verdicts: `desk` takes orders into shared transactions; `repository` runs the SQL of `statements`, `reading` makes of
rows what the gate judges, `verdicts` judges one order after the other, `record` is what goes in, comes out and is kept.
"""
