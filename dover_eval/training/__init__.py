"""How a checkpoint is made: drawn clips, known distortions, losses, and the loop."""
