"""How are the inputs of a matrix quantized while the model runs?"""
