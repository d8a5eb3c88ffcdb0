#!/bin/sh
# Makes what is in /app the same whoever builds it, and whenever: readable for all, writable for nobody but root, and
# every file with one date.
set -eu
chmod -R u=rwX,go=rX /app
find /app -exec touch -h -d "@${SOURCE_DATE_EPOCH}" {} +
