"""Scores a generated video against its prompt: five mean-opinion scores on the 1-5 scale."""
