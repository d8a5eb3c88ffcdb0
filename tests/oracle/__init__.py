"""Our sequential statistics beside other people's: gbstats (GrowthBook) and ville, in an environment of their own."""
