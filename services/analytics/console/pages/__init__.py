"""The live pages. Each module has `add(console)`, which registers its page."""
