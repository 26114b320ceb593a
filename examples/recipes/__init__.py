"""Checkpoints from human ratings under permissive licences: a converter and a settings file for each data set."""
