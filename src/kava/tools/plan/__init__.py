"""Will a configuration fit a card, and how long will it take? Computed from shapes alone: no weight is loaded, nothing is run."""
