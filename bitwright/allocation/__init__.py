"""How much does each unit get?"""
