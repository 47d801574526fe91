"""Makes the weights of the demo: draws paintings and trains each part of the model on them."""
