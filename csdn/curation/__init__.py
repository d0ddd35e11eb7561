"""Care of data that lives: what to do with images that arrive every night."""
