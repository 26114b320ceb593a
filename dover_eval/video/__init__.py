"""From files, arrays and tensors to the frames that a model reads."""
