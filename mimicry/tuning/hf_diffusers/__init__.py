"""The stack: trainer and wrapper for Stable Diffusion 3.x through diffusers, accelerate and peft."""
