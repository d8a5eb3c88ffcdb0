"""Pages in a real browser. `make proof` installs what drives it (requirements/browser.txt) and runs these."""
