"""Which codes are chosen, given the data?"""
