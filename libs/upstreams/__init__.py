"""The one road to model servers: connections, slots, breaker, heartbeat and dialects."""
