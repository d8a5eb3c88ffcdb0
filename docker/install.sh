#!/bin/sh
# Installs locks into /app/.venv: wheels whose hashes stand in them and nothing else, so nothing is built and no package
# runs code of its own. The arguments are pip's: `-r requirements/gateway.txt`.
set -eu
python -m pip --python .venv/bin/python install --require-hashes --only-binary :all: --no-compile --progress-bar off "$@"
cd .venv/lib/python3*/site-packages
# Never run here: tests of packages (`numpy/testing` and its like are no tests) and what only a compiler reads.
find . -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} +
find . -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.pyi' -o -name '*.c' -o -name '*.cpp' \
    -o -name '*.h' -o -name '*.hpp' -o -name '*.a' \) -delete
# These two bring the information for a debugger, 25 MB of it. Others are left as they came.
for package in uvloop asyncpg; do
    [ ! -d "$package" ] || find "$package" -name '*.so' -exec strip --strip-debug {} +
done
cd /app && rm -rf requirements
sh /build/settle.sh
