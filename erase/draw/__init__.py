"""From tables of prompts to pictures on disk, with records of what each picture is and what scorers say of it."""
