"""The study's data: its tree, artists and conditions, images, captions, progress."""
