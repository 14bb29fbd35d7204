"""What a compressed matrix is made of: a sum of terms, each of which decodes itself and says what it costs."""
