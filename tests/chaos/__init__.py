"""Random kills and damage, and what must hold after them."""
