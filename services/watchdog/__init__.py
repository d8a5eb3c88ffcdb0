"""The watchdog over a graphics card's memory: restarts what grew too big, and says so."""
