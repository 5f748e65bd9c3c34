"""Programs: one file each, read from top to bottom; only these parse command lines and print."""
