"""Policies: values in, plans out; no I/O, no clock."""
