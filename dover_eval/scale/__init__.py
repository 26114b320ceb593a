"""Scoring of large sets: inputs from anywhere, decoding beside the model, results that survive a kill."""
