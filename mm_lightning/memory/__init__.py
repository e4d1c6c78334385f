"""One memory unit: documents, recurrence, features, bandwidth, retrieval. Plain torch."""
