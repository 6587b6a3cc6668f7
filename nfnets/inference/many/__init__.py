"""Many images through a network: which ones, the loop, and files of results."""
