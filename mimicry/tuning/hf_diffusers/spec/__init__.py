"""What is to be trained: base model, LoRA modules, trainer arguments, and what forbids it. No torch."""
