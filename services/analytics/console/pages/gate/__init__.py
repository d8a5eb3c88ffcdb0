"""Gate: would it have saved or cost money? And the two switches."""
