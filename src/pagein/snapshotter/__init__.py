"""containerd's snapshotter: which directories and mounts make up each snapshot."""
