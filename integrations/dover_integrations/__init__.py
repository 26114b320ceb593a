"""Where dover-eval meets other frameworks; each framework is imported only inside its own file."""
