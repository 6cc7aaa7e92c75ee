"""Train the embedded world from a seed: detector, VAE, text encoders, UNets (users never need to)."""
