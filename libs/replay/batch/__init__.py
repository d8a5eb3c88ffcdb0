"""A batch: every stored decision of a period through another version, before that version decides anything.

The way of a batch: somebody asks for one (`command`, or the api), which is a row (`rows`). A process of the jobs takes
it (`held`), reads what is left to be asked, puts each decision to the model (`run` says how many and when, `ask` how),
and keeps what came of each. When all is asked, the sums (`sums`, made by Postgres in `figures`) become a `report`,
which `words` prints.
"""
