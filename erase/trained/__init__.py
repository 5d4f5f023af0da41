"""Erasing by steps of gradient descent: objectives, adapters, optimisers, the loop and its checkpoints."""
