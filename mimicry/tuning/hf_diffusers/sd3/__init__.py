"""The trainer's parts for Stable Diffusion 3, and the stages of a training.

Suffixes of tensor names: B batch, C latent channels, H and W latent height and width, L tokens of the
prompt, D width of its embedding, P width of the pooled prompt, I image channels.
"""
