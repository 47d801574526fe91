"""Programs that measure and print figures. They are not tests."""
