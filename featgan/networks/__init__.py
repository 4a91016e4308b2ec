"""The two networks of the game and the ways a condition enters the generator."""
