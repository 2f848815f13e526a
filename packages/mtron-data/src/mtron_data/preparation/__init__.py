"""From raw text to a prepared directory."""
