"""Samples of trained adapters: a preview of Step 4."""
