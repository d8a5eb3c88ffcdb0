"""The operator's console: what the desk is doing, and the few buttons that change it.

Pages are made in Python by NiceGUI and kept fresh over its websocket; signing in, panic and re-arm are plain HTML
forms, so that they work without it. What is shown is read from Postgres here; what changes something goes to the api
with the key of whoever is signed in. Nothing that a model or a stranger wrote is ever HTML.
"""
