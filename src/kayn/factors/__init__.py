"""Log factors of the model, evaluated in the cheapest of their forms."""
