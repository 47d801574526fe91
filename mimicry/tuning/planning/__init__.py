"""What a call would do, and what forbids it; writes nothing."""
