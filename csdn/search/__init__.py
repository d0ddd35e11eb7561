"""Use of a trained model: embed images, keep a gallery, search it, export the model, serve it."""
