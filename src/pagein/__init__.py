"""pagein starts a container before its image has been downloaded."""

__version__ = "0.1.0"
