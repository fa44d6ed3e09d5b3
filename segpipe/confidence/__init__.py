"""How sure a mask is, how well a score knows it, and the promise made from it."""
