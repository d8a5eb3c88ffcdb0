"""The official clients, unchanged, against the gateway as a process."""
