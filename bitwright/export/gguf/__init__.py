"""GGUF, the file format of llama.cpp: its container, read and written, and the blocks that its tensors are made of."""
