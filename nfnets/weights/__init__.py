"""Reading, recognizing, converting and folding weights."""
