"""The Hugging Face Hub: names, checks before training, uploads."""
