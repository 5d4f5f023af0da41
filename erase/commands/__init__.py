"""Commands that are a function's parameters, listings, and shell completion."""
