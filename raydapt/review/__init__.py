"""A person's answers about some images: which images to ask for, and what the answers say of all. Plain NumPy."""
