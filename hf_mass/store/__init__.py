"""Files, folders, the Hub and model cards. Plain data in, plain data out: no method is known here."""
