"""What the papers claim of lottery tickets, as data."""

CLAIMS: tuple = ()
