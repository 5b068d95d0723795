"""The campaign: kills, bad input, damage, full disks and hostile folders, made anew from a seed. ``make campaign``."""
