"""From a model to graphs and bundles."""
