"""How a checkpoint is made: from ratings and preferences of real clips, or from drawn ones whose content is known."""
