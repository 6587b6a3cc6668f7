"""Tools: plans, batches, curves, weights and studies."""
