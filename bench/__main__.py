"""`make bench`: runs every bench, one after the other, each in a process of its own."""

import subprocess
import sys

BENCHES = (
    "bench.assignment",
    "bench.ask",
    "bench.ask_wire",
    "bench.pipeline",
    "bench.replay",
    "bench.storage",
    "bench.console",
    "bench.embedded_model",
    "bench.gateway",
    "bench.sidecar",
    "bench.gate",
    "bench.panic",
    "bench.experiment_report",
    "bench.evaluation",
    "bench.evaluation_report",
    "bench.power",
)


def main() -> int:
    """Run all; 1 when one of them failed."""
    failed = [name for name in BENCHES if subprocess.run([sys.executable, "-m", name], check=False).returncode != 0]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
