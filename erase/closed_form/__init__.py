"""Erasing by one edit of the layers that read the text, without a picture or a step."""
