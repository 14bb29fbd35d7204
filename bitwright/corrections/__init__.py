"""What is added before or after rounding?"""
