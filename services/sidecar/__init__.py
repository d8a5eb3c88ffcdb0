"""The older `/generate/` interface for Hermes and Phi-3, in front of any OpenAI-compatible servers."""
