"""What a network has learned: pure functions of weights and activations."""
