"""What lies in an adapter's folder: weights, record, recipe, state."""
