"""Offline evaluation: prompt versions judged on recorded or made cases, along the way that forecasts take.

A data set is checked and sampled (`cases`), each case is asked and lands as a row on disk (`running`), the rows become
figures (`figures`) and a page (`report`). `sharing` spreads the asking over workers and keeps results in Postgres.
"""
