"""The demo study: paintings drawn by code, and a tiny but complete SD3 pipeline."""
