"""The generator, the discriminator, the EMA of weights, and the conditioning of the generator."""
