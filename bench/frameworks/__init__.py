"""The losses of frameworks' models against ours in their place, from outputs to gradients."""
