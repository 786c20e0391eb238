"""Training of small models: settings, batches and one training loop."""
