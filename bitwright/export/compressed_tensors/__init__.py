"""compressed-tensors: what vLLM and transformers load, and llm-compressor writes."""
