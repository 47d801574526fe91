"""How the weights of the demo were made: paintings of nobody, and the training of each part on them."""
