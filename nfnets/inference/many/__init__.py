"""Many images through a network: found, run, written, and gone on with."""
