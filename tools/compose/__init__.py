"""What the Compose stack needs around the services: its secrets, its first start, and how it asks whether one lives."""
