"""The embedded study: procedurally drawn paintings and a tiny but complete SD3 pipeline."""
