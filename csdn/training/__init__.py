"""Both stages of training; the losses of stage 2 are public, for loops of one's own."""
