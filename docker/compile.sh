#!/bin/sh
# Compiles what the programs of an image import. Every service it has, and the modules named.
set -eu
for main in services/*/__main__.py; do
    main=${main%.py}
    set -- "$@" "$(echo "$main" | tr / .)"
done
.venv/bin/python -m tools.compose.compile_used "$@"
sh /build/settle.sh
