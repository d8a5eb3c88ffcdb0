"""What an evaluation found, for people and for build servers: a page, a table for the terminal, a JUnit file.

All of it is made of `summary.json` alone; the page also takes the cases it shows. What a model or a headline wrote is
text everywhere: escaped in HTML and XML, without control characters in a terminal, and with what is hidden in it shown.
"""
