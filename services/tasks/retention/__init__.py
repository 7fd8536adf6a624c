"""How long what has ended is kept: the ages, of all tenants and of single ones, and what of this service is old."""
