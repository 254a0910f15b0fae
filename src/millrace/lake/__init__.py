"""The lake: Delta tables on a local disk, staged as files, proven by digest, published by one commit."""
