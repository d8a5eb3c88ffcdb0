"""Proofs on several machines: network namespaces of this one, on virtual cables. They need root and `ip netns`."""
