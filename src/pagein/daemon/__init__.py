"""Configuration, wiring, and the processes that serve mounts."""
