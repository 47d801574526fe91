"""What people read: tables, progress bars, verification."""
