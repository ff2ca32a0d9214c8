"""Co-Reg: two small networks co-train on noisy partial labels."""
