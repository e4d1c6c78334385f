"""Language models built from memories, the transformer they are compared with, and what they cost. Plain torch."""
