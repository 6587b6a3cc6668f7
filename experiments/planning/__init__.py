"""Plans a run: what a step needs on a chip that is not at hand."""
