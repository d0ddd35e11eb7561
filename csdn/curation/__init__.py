"""Care of data that lives: what is wrong in it, what has changed in it, and what is not labelled yet."""
