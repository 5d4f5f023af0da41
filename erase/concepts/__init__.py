"""What goes: a concept's forget, anchor, retain and evaluation prompts, and how words are compared."""
