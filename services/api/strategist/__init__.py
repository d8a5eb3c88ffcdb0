"""Everything between a strategy and the broker.

An entry: `entries` (the routes) asks `desk/` for a verdict that is on disk, then `submission` sends it, once. A
reducing order: `entries`, then `exits/`, which asks no desk. `account` shows what became of them, `switches` what
operators turned. `panic` has the routes of the panic exit, the halt and the re-arm; `stopping/` starts and watches
their process. `state` opens all of it.
"""
