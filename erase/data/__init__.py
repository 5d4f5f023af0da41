"""What a run reads: pictures, captions, tables, and the training data that the base model makes once."""
