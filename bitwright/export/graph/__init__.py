"""What formats share that store a whole model as one graph of operators: the architecture, the matrices, the document inside."""
