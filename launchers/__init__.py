"""Programs: one file each, read from top to bottom; nothing imports them; what they share is in `runs/`."""
