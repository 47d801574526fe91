"""Random kills and damage, and checks that nothing is lost."""
