"""The adversarial losses: a file for each game."""
