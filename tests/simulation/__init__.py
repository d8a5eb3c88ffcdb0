"""Seeded simulations of the whole way of an order and of a panic exit, on a virtual clock."""
