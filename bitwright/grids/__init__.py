"""Which values can a code stand for?"""
