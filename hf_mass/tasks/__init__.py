"""Tasks as plain data: where they come from, how they read, and how answers to them are verified. No torch here."""
