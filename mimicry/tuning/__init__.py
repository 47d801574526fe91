"""Step 3: one DreamBooth LoRA adapter per artist and condition."""
