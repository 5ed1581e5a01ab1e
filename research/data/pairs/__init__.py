"""Photo pairs with preferences: labels, audit, features, loading."""
