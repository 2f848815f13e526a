"""The Llama family: a plain decoder with rotary positions, grouped-query attention and SwiGLU."""
