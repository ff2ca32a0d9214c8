"""What a user asks for beside ``run``."""
