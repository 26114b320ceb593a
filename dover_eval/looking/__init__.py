"""Results as pages: one self-contained file each, which asks no network for anything."""
