"""How often what is called different is not, when one looks after every batch: simulated, at length."""
