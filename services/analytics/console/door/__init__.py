"""Who is let in: sessions by key, the guard in front of every page, the sign-in form."""
