"""containerd's messages: our ``.proto`` files, and what ``generate`` makes of them."""
