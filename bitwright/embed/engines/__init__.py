"""Which engine takes these codes, and what does it need to search them? One file per engine; what it stores is what we stored."""
