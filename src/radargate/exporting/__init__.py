"""One ordinary LoRA fitted to what a composition adds on given rows, how much it loses, and its GGUF form."""
