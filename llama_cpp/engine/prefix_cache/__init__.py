"""What earlier requests computed, for those that begin alike."""
