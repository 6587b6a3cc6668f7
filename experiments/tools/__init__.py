"""Programs beside training: look at batches and curves, take out weights."""
