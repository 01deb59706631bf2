"""The only room that knows torch: from examples to a trained model."""
