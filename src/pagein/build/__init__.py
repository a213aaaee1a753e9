"""Convert images and publish the result."""
