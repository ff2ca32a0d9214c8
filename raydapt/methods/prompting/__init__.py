"""What fpl, grip, cpl and air share: a prompt that is learned from pseudo-labels in rounds."""
