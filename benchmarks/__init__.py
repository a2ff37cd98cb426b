"""What the README claims about speed, measured again by one command: ``bash scripts/bench``."""
