"""Where sectors, manifests and blobs live."""
