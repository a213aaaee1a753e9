"""Protocol machines without sockets."""
