"""What is to be trained: base model, LoRA modules, the arguments of the trainer, what forbids it. No torch."""
