"""The numbers that the papers print, one CSV per paper (see README.md)."""
