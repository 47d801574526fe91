"""What every step of the study needs: its tree, images, tracker, files, errors and child processes."""
