"""What the machine and whoever sits before it ask for: devices, progress, stopping."""
