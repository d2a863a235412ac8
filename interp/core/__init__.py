"""The words that everything is said in: configs, sites, tokens, indices, values, and the tap."""
