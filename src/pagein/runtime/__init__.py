"""Run a container from a mounted image."""
