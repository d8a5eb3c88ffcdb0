"""`python -m libs.replay.batch --since yesterday --version 1.1.0`, behind `make replay`."""

import sys

from libs import telemetry
from libs.replay.batch.command import main

if __name__ == "__main__":
    telemetry.configure("replay", level="ERROR")
    sys.exit(main(sys.argv[1:]))
