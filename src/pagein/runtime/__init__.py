"""OCI runtime bundles, and runc or crun to run them."""
