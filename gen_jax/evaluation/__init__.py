"""What samples are worth: judges that were made here, and share no weights with what they judge.

scenes      captioned scenes read back: digit, colour, size and place of each object
"""
