"""One file per published method, and the reasoning loop that they share."""
