"""What every other package needs: errors, text, files, environment, claims and child processes."""
