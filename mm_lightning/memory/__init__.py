"""One memory: documents, keys, values, bandwidth, retrieval and its state. Plain torch; compiled forms in kernels/."""
