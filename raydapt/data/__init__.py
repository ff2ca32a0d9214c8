"""What an image set is: where its images are, how they are read and decoded, its classes, its divisions."""
