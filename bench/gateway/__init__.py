"""What a request through the gateway costs, beside its peers on the same machine in the same run."""
