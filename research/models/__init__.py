"""Networks, one module for each family, and the weights that they start from."""
