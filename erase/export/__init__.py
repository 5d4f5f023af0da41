"""What a run leaves: a diffusers pipeline, a patch, a model card."""
