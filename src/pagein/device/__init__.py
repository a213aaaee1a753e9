"""Attach a device to the kernel."""
